"""Kills nexa with everything that it started at random moments, again and again, then lets it recover.

By hand: `python -m tests.chaos.kill_loop --kills 50 --seed 7` (root; makes an emulated region of its own).
After each recovery the region's own books must show exactly the cluster's nodes, or nothing after a teardown, and
every decoy unharmed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import procs
from tests.cloud.region import Running, region

NEXA = (sys.executable, "-m", "nexa_dist")
ROOT = Path(__file__).parents[2]
CLUSTER = """\
name: chaos
provider: aws
nodes: 2
gpus_per_node: 2
max_hours: 2
offers: [{type: g5.12xlarge, zone: us-east-1a}, {type: g5.12xlarge, zone: us-east-1b}]
"""
PROVISION_S, TEARDOWN_S = 40.0, 20.0
"""Kills fall anywhere in these spans, which a whole command fits into on an idle machine."""
CYCLE = 5
"""So many kills between two recoveries; the last of them hits a teardown."""


@dataclass
class Books:
    """What the loop saw."""

    kills: Counter[str] = field(default_factory=Counter)
    late: int = 0
    """Kills that came after the command had ended."""
    faults: list[str] = field(default_factory=list)


def kill_tree(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the controller, Terraform, its provider, Ansible and ssh: a laptop that loses power."""
    if child.poll() is None:  # else the pid may be somebody else's
        procs.kill_trees([child.pid])
    child.wait()


class Loop:
    def __init__(self, here: Running, folder: Path, seed: int) -> None:
        self.here, self.folder, self.books = here, folder, Books()
        self.random = random.Random(seed)
        self.env = {**here.environ(), "PYTHONPATH": str(ROOT), "NEXA_SETTLE_S": "3"}
        (folder / "chaos.yaml").write_text(CLUSTER)
        self.decoys = plant_decoys(here)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        log = open(self.folder / "log.txt", "ab")  # noqa: SIM115 (the child's)
        return subprocess.Popen(
            [*self.here.prefix, *NEXA, *words, "--cluster", "chaos.yaml", "-y"],
            cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def killed(self, verb: str, span_s: float) -> None:
        child = self.start(verb)
        wait_s = self.random.uniform(0.3, span_s)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)
        if child.poll() is not None:
            self.books.late += 1
        kill_tree(child)
        self.books.kills[verb] += 1

    def whole(self, verb: str) -> None:
        child = self.start(verb)
        try:
            code = child.wait(900)
        except subprocess.TimeoutExpired:
            kill_tree(child)
            code = -1
        if code:
            self.books.faults.append(f"{verb} after kills ended with {code}")

    def check(self, nodes: int) -> None:
        resources = self.here.client.state()["resources"]
        ours = [
            (kind, ident)
            for kind, things in resources.items()
            for ident, tags in things.items()
            if tags.get("nexa:cluster") == "chaos" and tags.get("nexa:owner") == "user/moto"
        ]
        machines = [
            ident for kind, ident in ours if "instance" in kind and "request" not in kind and "profile" not in kind
        ]
        if len(machines) != nodes:
            self.books.faults.append(f"{len(machines)} instances, {nodes} were expected: {machines}")
        if nodes == 0 and ours:
            self.books.faults.append(f"left after teardown: {ours}")
        there = {ident for things in resources.values() for ident in things}
        if self.decoys - there:
            self.books.faults.append(f"harmed decoys: {self.decoys - there}")

    def run(self, kills: int) -> Books:
        while sum(self.books.kills.values()) < kills and not self.books.faults:
            left = kills - sum(self.books.kills.values())
            for _ in range(min(CYCLE - 1, max(1, left - 1))):
                self.killed("provision", PROVISION_S)
            self.whole("provision")
            self.check(2)
            if sum(self.books.kills.values()) < kills:
                self.killed("teardown", TEARDOWN_S)
            self.whole("teardown")
            self.check(0)
        return self.books


def plant_decoys(here: Running) -> set[str]:
    """Things that look like ours: the same Name with no tags of nexa, another owner, another cluster."""
    import boto3

    made: Any = boto3.client(
        "ec2", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{here.port}",
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip
    looks: list[dict[str, str]] = [
        {"Name": "nexa-chaos-7173b586-n0"},
        {"Name": "nexa-chaos-7173b586-n0", "nexa:cluster": "chaos"},
        {"Name": "nexa-chaos-7173b586-n0", "nexa:cluster": "chaos", "nexa:owner": "user/somebody"},
        {"Name": "nexa-chaos-7173b586-n0", "nexa:cluster": "chaos2", "nexa:owner": "user/moto"},
    ]
    found: set[str] = set()
    for tags in looks:
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        volume = made.create_volume(
            AvailabilityZone="us-east-1a", Size=1, TagSpecifications=[{"ResourceType": "volume", "Tags": listed}]
        )
        vpc = made.create_vpc(CidrBlock="10.9.0.0/16", TagSpecifications=[{"ResourceType": "vpc", "Tags": listed}])
        group = made.create_security_group(
            GroupName=f"decoy-{len(found)}", Description="decoy", VpcId=vpc["Vpc"]["VpcId"],
            TagSpecifications=[{"ResourceType": "security-group", "Tags": listed}],
        )  # fmt: skip
        found |= {volume["VolumeId"], vpc["Vpc"]["VpcId"], group["GroupId"]}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    with region(f"chaos-{os.getpid()}") as here, tempfile.TemporaryDirectory(prefix="nexa-chaos-") as folder:
        loop = Loop(here, Path(folder), arguments.seed)
        books = loop.run(arguments.kills)
        if books.faults:
            print((Path(folder) / "log.txt").read_text(errors="replace")[-6000:], file=sys.stderr)
    print(
        f"seed {arguments.seed}: {dict(books.kills)} kills, {books.late} of them after the command's end, "
        f"{len(books.faults)} faults, {time.monotonic() - began:.0f} s"
    )
    for fault in books.faults:
        print(f"  {fault}")
    return 1 if books.faults else 0


if __name__ == "__main__":
    sys.exit(main())
