"""nexa trust: the user's word for what nexa did not make, and would start programs by."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.run import stack_sources
from nexa_dist.run import trust as marks
from nexa_dist.run.runner import SystemRunner
from nexa_dist.run.ssh import consent
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
        raise UsageError(f"{path} is neither a folder nor a file", hint="nexa trust DIR, STACK or SSH_CONFIG")
    named = consent.programs(str(path))[0] if args.dry_run else consent.consent(str(path))
    for line in named:
        terminal.say(f"  {terminal.plain(line)}")
    if args.dry_run:
        terminal.say(f"would allow ssh to start these {len(named)} until {path} changes")
        return EXIT_OK
    terminal.say(
        f"✓ ssh may start these until {path} changes" if named else f"{path} names no program: nothing to allow"
    )
    return EXIT_OK


def _workspace(path: Path, dry: bool) -> int:
    if dry:
        terminal.say(f"would note in {marks.state()} that {path / '.nexa'} and its runs are yours")
        return EXIT_OK
    marks.adopt(path)
    marks.refuse_foreign(SystemRunner(), path)
    terminal.say(f"✓ {path / '.nexa'} and its runs are yours")
    return EXIT_OK
