"""nexa report: one page of a run, to be mailed."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from nexa_dist.errors import EXIT_OK, NexaError
from nexa_dist.ops.report import gather
from nexa_dist.plan.health.slow_links import colour
from nexa_dist.plan.runs.history import thinned
from nexa_dist.run import files
from nexa_dist.ui import terminal
from nexa_dist.ui.run_view import step_lines
from nexa_dist.ui.run_view.views import finite
from nexa_dist.verbs._shared import context


def report(args: argparse.Namespace) -> int:
    ctx = context(acts=False)
    run = ctx.workspace.run(args.run)
    told = gather(ctx, run, step_lines.read)
    if args.json:
        terminal.emit(finite(told))
    if args.out or not args.json:
        try:
            from nexa_dist.ui.report import page
        except ImportError as error:
            uv = shlex.join([str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", sys.executable])
            raise NexaError(
                f"the page needs {error.name}, which is not installed here (the extra `report` of nexacompute)",
                hint=f"{uv} matplotlib jinja2; nexa report --json does without",
            ) from None
        path = Path(args.out or f"{run.run_id}.html")
        files.write_text(path, page.render(told, thinned, colour))
        terminal.say(f"{path}: {path.stat().st_size >> 10} KiB, one file, needs no network")
    return EXIT_OK
