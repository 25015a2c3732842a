"""nexa init: a commented cluster.yaml and train.yaml to start from."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path

from nexa_dist.errors import EXIT_OK
from nexa_dist.ops.cluster.init import init as initialise
from nexa_dist.run import trust
from nexa_dist.run.workspace import Workspace
from nexa_dist.ui import terminal


def init(args: Arguments) -> int:
    folder = Path(args.folder)
    for path in initialise(folder, dry=args.dry_run):
        terminal.say(f"{'would write' if args.dry_run else 'made'} {path}")
    if args.dry_run:
        return EXIT_OK
    if not Workspace.of(folder.absolute()).above:  # from below it is found from now on
        trust.claim(folder)
    terminal.say("next: nexa provision --cluster cluster.yaml, then nexa run train.yaml, then nexa teardown")
    return EXIT_OK
