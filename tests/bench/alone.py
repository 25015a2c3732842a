"""A budget with nobody home: `python -m tests.bench.alone [--seed N]` (root, an emulated region, 20 minutes).

Three clusters of two nodes, each with the least budget that is let pass. Their controllers are killed with SIGKILL at
a random moment: while the nodes are made, while they train, after a run. Then prices rise by 15 %. Nothing tells the
nodes; the region's own bill must not pass the budget, and every node must be off a minute after its time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexa_dist.plan.money.budget import BOOT_S, GUARD, RESERVE_S
from tests.chaos.kill_loop import kill_tree
from tests.cloud.region import Running, region
from tests.e2e.conftest import NEXA, Lab

ZONE, TYPE, USD = "us-east-1a", "g5.12xlarge", 2.0
RISE = 1.15
NODES = 2
AROUND = 1.05
"""Disks and addresses come on top of the instances' price."""
BUDGET_USD = round(NODES * USD * AROUND * GUARD * (BOOT_S + RESERVE_S) / 3600, 2)
LATE_S = 60.0
CLUSTER = """\
name: {name}
provider: aws
nodes: {nodes}
gpus_per_node: 1
max_hours: 2
budget_usd: {budget}
offers: [{{type: {type}, zone: {zone}}}]
"""
LOOP = "import time\nfor _ in range(100000):\n    time.sleep(0.5)\n"


def begin(lab: Lab, *words: str) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    return subprocess.Popen(
        [*lab.prefix, *NEXA, *words], cwd=lab.root, env=lab.environment(), stdin=null, stdout=null, stderr=null
    )


def mine(here: Running, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = here.client.bill()["instances"]
    return [row for row in rows if row["tags"].get("nexa:cluster") == name]


def waited(holds: Callable[[], bool], limit_s: float) -> None:
    """Until it holds, or the time is over: a table says what was."""
    over = time.time() + limit_s
    while not holds() and time.time() < over:
        time.sleep(0.5)


def while_made(lab: Lab, here: Running, name: str, chance: random.Random) -> None:
    child = begin(lab, "provision", "--cluster", f"{name}.yaml", "-y")
    waited(lambda: len(mine(here, name)) == NODES, 120)
    time.sleep(chance.uniform(0, 10))
    kill_tree(child)


def while_it_trains(lab: Lab, here: Running, name: str, chance: random.Random) -> None:
    lab.nexa("provision", "--cluster", f"{name}.yaml", "-y", timeout_s=400)
    child = begin(lab, "run", "loop.yaml", "--cluster", name)
    time.sleep(chance.uniform(5, 60))
    kill_tree(child)


def after_a_run(lab: Lab, here: Running, name: str, chance: random.Random) -> None:
    lab.nexa("provision", "--cluster", f"{name}.yaml", "-y", timeout_s=400)
    lab.nexa("run", "once.yaml", "--cluster", name, timeout_s=200)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    chance = random.Random(parser.parse_args().seed)
    plays = {"made": while_made, "trained": while_it_trains, "idle": after_a_run}
    print(f"budget {BUDGET_USD:.2f} USD each, {NODES} nodes at {USD:.2f} USD/h, later {USD * RISE:.2f}")
    with tempfile.TemporaryDirectory(prefix="alone") as folder, region(f"bench-alone-{os.getpid()}") as here:
        lab = Lab(Path(folder), here.prefix, {**here.env, "NEXA_SETTLE_S": "3"})
        here.client.price(TYPE, ZONE, USD)
        for name, text in (("loop", LOOP), ("once", "print('done')")):
            lab.write(f"{name}.py", text)
            lab.write(f"{name}.yaml", json.dumps({"name": name, "script": f"{name}.py"}))
        for name, play in plays.items():
            text = CLUSTER.format(name=name, nodes=NODES, budget=BUDGET_USD, type=TYPE, zone=ZONE)
            lab.write(f"{name}.yaml", text)
            play(lab, here, name, chance)
        here.client.price(TYPE, ZONE, USD * RISE)
        rows = {name: mine(here, name) for name in plays}
        lives_s = BUDGET_USD / (NODES * USD * GUARD) * 3600
        until = max(row["launch_unix"] for found in rows.values() for row in found) + lives_s + LATE_S
        waited(lambda: all(row["end_unix"] for name in plays for row in mine(here, name)), until - time.time())
        failed = False
        print("controller killed while   nodes  lived at most  billed USD  of the budget")
        for name in plays:
            found = mine(here, name)
            usd, off = sum(row["usd"] for row in found), all(row["end_unix"] for row in found)
            longest = max((row["end_unix"] or time.time()) - row["launch_unix"] for row in found)
            failed |= not off or usd > BUDGET_USD * 1.02 or longest > lives_s + LATE_S or len(found) < NODES
            print(f"{name:25s} {len(found):5d} {longest:12.0f} s {usd:11.4f} {usd / BUDGET_USD:14.1%}"
                  + ("" if off else "  STILL ON"))  # fmt: skip
        for name in plays:
            lab.nexa("teardown", "--cluster", f"{name}.yaml", "-y", "--keep-nothing", timeout_s=400)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
