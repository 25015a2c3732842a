"""Table of a queue: a row for each run with its parameters and what came of it, and a picture of a grid."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.active_runs import progress
from nexa_dist.ops.queue import Queue, Row, settled
from nexa_dist.ops.runs import summary as runs
from nexa_dist.plan.runs import grid
from nexa_dist.run import files
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact
from nexa_dist.ui import terminal
from nexa_dist.ui.run_view.step_lines import read

COLUMNS = ("id", "state", "parameters", "loss", "minutes", "usd", "run", "why")
LOG_BYTES = 1 << 16


def show(found: Queue, as_json: bool, picture: str | None) -> None:
    """The queue as it is now, on stdout; a run that nobody wrote down as ended is shown as its record tells."""
    rows = [of_row(row) for row in found.load().rows]
    if picture:
        draw(found.folder.name, rows, Path(picture))
    rows_out(rows, as_json)


def rows_out(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        terminal.emit(rows)
    elif rows:
        terminal.table([{**row, "parameters": _words(row)} for row in rows], COLUMNS)
    else:
        terminal.say("the queue is empty")


def draw(name: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the picture. Raises UsageError when there is nothing to draw."""
    dots = [grid.Dot(row["parameters"], row["loss"]) for row in rows if row["loss"] is not None]
    made = grid.picture(f"{name}, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}", dots)
    if not made:
        raise UsageError("no picture: no two runs of a grid have a loss", hint="nexa queue shows what they have")
    files.write_text(path, made)


def of_row(row: Row) -> dict[str, Any]:
    """One row, as `--json` has it."""
    made: dict[str, Any] = {
        "id": row.id or None, "state": row.state, "config_file": row.config_file, "parameters": redact(row.point),
        "loss": None, "minutes": None, "usd": None, "run": None, "why": row.why,
        "began_s": row.began_s, "first_rank_s": row.first_rank_s,
    }  # fmt: skip
    if row.run is None:
        return made
    try:
        told = runs.summary(row.run)
        made |= {"minutes": told["minutes"], "usd": told["cost_usd"], "run": row.run_id, "loss": loss_of(row.run)}
        return made | {"state": settled(row).state, "why": row.why or told["cause"]}
    except NexaError as error:
        return made | {"run": row.run_id, "why": str(error)}


def loss_of(run: RunFolder) -> float | None:
    """Loss of the evaluation; else the last one that rank 0 reported, or wrote into its log."""
    try:
        report = files.read_object(run.manifest).get("eval_report") if run.manifest.exists() else None
    except NexaError:
        report = None
    held_out = report.get("eval_loss_nats") if isinstance(report, dict) else None
    if isinstance(held_out, (int, float)):
        return float(held_out)
    told = progress(run)["loss"]
    if told is not None:
        return float(told)
    found = None
    for path in run.logs.glob("*/rank_0/*.log"):
        for line in files.tail(path, LOG_BYTES).splitlines():
            found = read(line).get("loss", found)
    return found


def _words(row: dict[str, Any]) -> str:
    return " ".join([row["config_file"], *(f"{key}={value}" for key, value in row["parameters"].items())])
