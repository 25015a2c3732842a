"""nexa trust: the user's word for what nexa did not make, and would start programs by."""

from __future__ import annotations

import shlex
from argparse import Namespace as Arguments
from pathlib import Path

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.run import stack_sources
from nexa_dist.run import trust as marks
from nexa_dist.run.runner import Runner
from nexa_dist.run.ssh import consent
from nexa_dist.run.workspace import Workspace
from nexa_dist.ui import terminal


def trust(args: Arguments) -> int:
    path = Path(args.path).absolute()
    if path.is_dir() and next(path.glob("*.tf*"), None):
        sources = stack_sources.read(path)
        if args.dry_run:
            terminal.say(f"would allow Terraform to run this stack until a file of it changes: {path}")
            return EXIT_OK
        stack_sources.allow(path, sources)
        terminal.say(f"✓ Terraform may run this stack, and what it names, until a file of it changes: {path}")
        return EXIT_OK
    if path.is_dir():
        return _workspace(path, args.dry_run)
    if not path.is_file():
        raise UsageError(
            f"{path} is neither a folder nor a file", hint="nexa trust DIR, STACK, SSH_CONFIG or CLUSTER.yaml"
        )
    if path.suffix in (".yaml", ".yml"):
        return _commands(path, args.dry_run)
    named, digest = consent.programs(str(path))
    if named and not args.dry_run:
        consent.keep(str(path), digest)
    for line in named:
        terminal.say(f"  {terminal.plain(line)}")
    if args.dry_run:
        terminal.say(f"would allow ssh to start these {len(named)} until {path} changes")
        return EXIT_OK
    terminal.say(
        f"✓ ssh may start these until {path} changes" if named else f"{path} names no program: nothing to allow"
    )
    return EXIT_OK


def _commands(path: Path, dry: bool) -> int:
    """The commands that `notify` of a cluster's file names."""
    from nexa_dist.config.load import load_cluster
    from nexa_dist.ops.notify import targets

    rows = load_cluster(path).notify
    commands = [shlex.join(row.command) for row in rows if row.command]
    for line in commands:
        terminal.say(f"  {terminal.plain(line)}")
    root = Workspace.here().root
    if not commands:
        terminal.say(f"{path} names no command in notify: nothing to allow")
    elif dry:
        terminal.say(f"would allow nexa to start these {len(commands)} in {root}")
    else:
        targets.allow(root, rows)
        terminal.say(f"✓ nexa may start these when it tells of a run, in {root}")
    return EXIT_OK


def _workspace(path: Path, dry: bool) -> int:
    if dry:
        terminal.say(f"would note in {marks.state()} that {path / '.nexa'} and its runs are yours")
        return EXIT_OK
    marks.adopt(path)
    marks.refuse_foreign(Runner(), path)
    terminal.say(f"✓ {path / '.nexa'} and its runs are yours")
    return EXIT_OK
