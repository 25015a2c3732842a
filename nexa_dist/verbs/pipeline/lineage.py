"""nexa lineage: where a version or a run comes from, down to the raw rows, each checked by its bytes."""

from __future__ import annotations

import argparse
from pathlib import Path

from nexa_dist.errors import EXIT_FAILED, EXIT_OK
from nexa_dist.ops.pipeline.lineage import lineage as found
from nexa_dist.run import files
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context


def lineage(args: argparse.Namespace) -> int:
    ctx = context(acts=False)
    tree = found(ctx.workspace, args.of)
    if args.picture:
        from nexa_dist.ui.lineage import svg

        files.write_text(Path(args.picture), svg(tree.to_json()), 0o644)
        ctx.say(f"drawn: {args.picture}")
    if args.json:
        terminal.emit(tree.to_json())
    else:
        for line in tree.lines():
            terminal.out(line)
    return EXIT_FAILED if any(one.faults for one in tree.all()) else EXIT_OK
