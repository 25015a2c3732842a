"""nexa timeline: where the minutes of a cluster went."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_OK, NexaError
from nexa_dist.plan.timeline import timeline as steps_of
from nexa_dist.run import files
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, name_of


def timeline(args: Arguments) -> int:
    ctx = context(acts=False, cluster=args.cluster)
    folder = _folder(ctx.workspace.root, args.cluster)
    rows: list[dict[str, Any]] = steps_of(files.read_lines(folder / "journal.jsonl"))
    if args.json:
        terminal.emit(rows)
    else:
        terminal.table(rows, ("step", "at_s", "seconds", "state", "what"))
    return EXIT_OK


def _folder(root: Path, named: str | None) -> Path:
    """Folder of a cluster that is there, else of the newest one of that name that was torn down."""
    stem = name_of(named or "")
    there = sorted((root / ".nexa" / "clusters").glob(f"{stem or '*'}/journal.jsonl"))
    gone = sorted((root / ".nexa" / "history").glob(f"{stem or '*'}_*/journal.jsonl"), key=lambda p: p.stat().st_mtime)
    if not there and not gone:
        raise NexaError(f"no cluster {stem} is known in {root}".replace("  ", " "), hint="nexa status lists them")
    return (there or gone)[-1].parent
