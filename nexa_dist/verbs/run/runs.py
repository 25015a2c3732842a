"""nexa runs: every run known here."""

from __future__ import annotations

from argparse import Namespace as Arguments
from typing import Any

from nexa_dist.errors import EXIT_FAILED, EXIT_OK, NexaError
from nexa_dist.ops.runs import summary as listing
from nexa_dist.ops.runs.summary import summary
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context


def runs(args: Arguments) -> int:
    rows: list[dict[str, Any]] = []
    before: dict[str, dict[str, Any]] = {}
    code = EXIT_OK
    for found in context(acts=False).workspace.runs():
        try:
            rows.append(summary(found) | listing.figures(found, before))
        except NexaError as error:
            code = EXIT_FAILED
            terminal.error(f"passed over: {error}", error.hint)
    if args.json:
        terminal.emit(rows)
    elif rows:
        terminal.table(
            rows, ("run", "state", "cluster", "experiment", "step", "loss", "minutes", "cost_usd", "changed", "cause")
        )
    else:
        terminal.say("no run yet")
    return code
