"""What Ansible takes on local nodes, which share one folder of environments: the first builds it, the others wait.

cold: no environment and an empty cache of wheels · warm: new nodes, the environment is there · unchanged: again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STATES = ("cold", "warm", "unchanged")
CLUSTER = "name: bench\nprovider: local\nnodes: {nodes}\ngpus_per_node: 1\n"


def nexa(folder: Path, *words: str) -> None:
    env = {**os.environ, "NEXA_SHARED": str(folder / "shared"), "UV_CACHE_DIR": str(folder / "wheels")}
    done = subprocess.run(
        [sys.executable, "-m", "nexa_dist", *words], cwd=folder, env=env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"nexa {' '.join(words)} failed:\n{done.stderr[-3000:]}")


def provisioned(folder: Path) -> float:
    """Seconds of the newest bootstrap, by the cluster's own journal."""
    nexa(folder, "provision", "--cluster", "c.yaml", "-y")
    told = subprocess.run(
        [sys.executable, "-m", "nexa_dist", "timeline", "--json"], cwd=folder, capture_output=True, check=True
    )
    return float([row["seconds"] for row in json.loads(told.stdout) if row["step"] == "bootstrap"][-1])


def measured(nodes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="nexa-bench-") as name:
        folder = Path(name)
        (folder / "c.yaml").write_text(CLUSTER.format(nodes=nodes))
        try:
            cold = provisioned(folder)
            nexa(folder, "teardown", "--cluster", "c.yaml", "-y", "--keep-nothing")
            warm = provisioned(folder)
            return {"cold": cold, "warm": warm, "unchanged": provisioned(folder)}
        finally:
            nexa(folder, "teardown", "--cluster", "c.yaml", "-y", "--keep-nothing")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_bootstrap", description=__doc__)
    parser.add_argument("--nodes", default="1,2,8", help="sizes, such as 1,2,8")
    sizes = [int(size) for size in parser.parse_args().nodes.split(",")]
    rows = {size: measured(size) for size in sizes}
    first = rows[sizes[0]]
    print(f"{'nodes':>5}" + "".join(f"{state:>12}{'ratio':>7}" for state in STATES))
    for size, row in rows.items():
        print(f"{size:5d}" + "".join(f"{row[state]:10.1f} s{row[state] / first[state]:7.2f}" for state in STATES))
    print(f"ratios to {sizes[0]} node; unchanged beside cold: "
          + ", ".join(f"{row['unchanged'] / row['cold']:.3f}" for row in rows.values()))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
