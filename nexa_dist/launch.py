"""`python -m nexa_dist.launch --config CLUSTER.yaml -- script.py ARGS…`: any torchrun script, on every node."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nexa_dist.cli import guarded, hear
from nexa_dist.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the launch; a module is started with `-m package.module` in place of the script."""
    parser = argparse.ArgumentParser(prog="python -m nexa_dist.launch", description=__doc__)
    parser.add_argument("--config", required=True, metavar="CLUSTER.yaml", help="cluster file, or name of a known one")
    parser.add_argument("--nproc-per-node", type=int, metavar="N", help="ranks on each node (default: its gpus)")
    parser.add_argument("--rank", default="0", metavar="N,N|all", help="ranks whose lines are shown (default: 0)")
    parser.add_argument("--detach", action="store_true", help="leave once every node runs")
    parser.add_argument("--print", "--dry-run", action="store_true", dest="dry_run", help="show each node's command")
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- SCRIPT|-m MODULE ARGS…")
    args = parser.parse_args(argv)
    hear("run")
    return guarded(lambda: _launch(args))


def _launch(args: argparse.Namespace) -> int:
    from nexa_dist.config.load import valid_train
    from nexa_dist.verbs._shared import Shown, context, find_cluster
    from nexa_dist.verbs.run.run import launched

    words = args.program[1:] if args.program[:1] == ["--"] else list(args.program)
    target = "module" if words[:1] == ["-m"] else "script"
    words = words[1:] if target == "module" else words
    if not words:
        raise UsageError("no script to run", hint="python -m nexa_dist.launch --config CLUSTER.yaml -- script.py ARGS…")
    ctx = context(dry=args.dry_run)
    values = {target: words[0], "args": words[1:], "nproc_per_node": args.nproc_per_node}
    config = valid_train(values, "command line")
    cluster, shown = find_cluster(ctx, args.config), Shown.asked(args)
    return launched(ctx, cluster, config, "", shown)


if __name__ == "__main__":
    sys.exit(main())
