"""nexa provision beside a bare `terraform apply` of the same stack and variables, in one run.

It runs in an emulated region of its own (root), and prints seconds of this run and their ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cloud.image import REPO
from tests.cloud.region import region

CLUSTER = """\
name: bench
provider: aws
nodes: 2
gpus_per_node: 2
max_hours: 1
offers: [{type: g5.12xlarge, zone: us-east-1a}]
"""


def main() -> int:
    argparse.ArgumentParser(prog="scripts/bench_provision", description=__doc__).parse_args()
    with region(f"bench-{os.getpid()}") as here, tempfile.TemporaryDirectory(prefix="nexa-bench-") as name:
        folder = Path(name)
        (folder / "c.yaml").write_text(CLUSTER)
        stack = folder / ".nexa" / "clusters" / "bench" / "terraform"
        env = {**here.environ(), "PYTHONPATH": str(REPO), "NEXA_SETTLE_S": "1"}

        def timed(*argv: str, **more: str) -> float:
            began = time.monotonic()
            done = subprocess.run(
                [*here.prefix, *argv], cwd=folder, env={**env, **more}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=900,
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{' '.join(argv)} failed:\n{done.stderr[-3000:]}")
            return time.monotonic() - began

        def nexa(*words: str) -> float:
            return timed(sys.executable, "-m", "nexa_dist", *words)

        def bare(verb: str) -> float:
            words = ("-auto-approve", "-input=false", f"-var-file={stack}/nexa.tfvars.json")
            own = {"TF_DATA_DIR": f"{stack}/data", "TF_CLI_CONFIG_FILE": f"{stack}/terraformrc"}
            return timed("terraform", f"-chdir={stack}/src/stacks/aws", verb, *words, **own)

        first = nexa("provision", "--cluster", "c.yaml", "-y")
        second = nexa("provision", "--cluster", "c.yaml", "-y")
        bare_second = bare("apply")
        bare("destroy")
        bare_first = bare("apply")  # the very same variables, provider and region; init was done
        nexa("teardown", "-y", "--keep-nothing")
    print(f"{'':24}{'nexa provision':>16}{'terraform apply':>17}{'ratio':>7}")
    for label, ours, theirs in (("2 new nodes", first, bare_first), ("nothing to change", second, bare_second)):
        print(f"{label:24}{ours:14.1f} s{theirs:15.1f} s{ours / theirs:7.2f}")
    print("nexa: also prices, claim, boot, host keys, Ansible bootstrap and health check of every node")
    return 0


if __name__ == "__main__":
    sys.exit(main())
