"""One self-contained page of a run. All of it is data of strangers: the template escapes it, and the page says to the
browser that nothing in it may run or be fetched."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nexa_dist.ui.report import plots
from nexa_dist.ui.report.plots import Line, Marks, Span
from nexa_dist.ui.run_view.state import UNREPORTED, span

CURVES = {"loss": "loss", "learning_rate": "learning rate", "tokens_per_s": "tokens/s"}
SOURCES = {
    "lines": "Its script reported no figures; these were read from the lines that rank 0 wrote.",
    "": f"There are no curves: {UNREPORTED}.",
}
WIDE = 11.4
"""Inches of a time line on a screen; on a phone it is as wide as a curve."""
Told = Mapping[str, Any]
Points = list[tuple[int, float]]
Thin = Callable[[Points, int], Points]
MOST_POINTS = 1500


def render(told: Told, thin: Thin, colour: Callable[[float], str]) -> str:
    """HTML of what ops/report.py gathered. `thin` is of plan/runs/history.py, `colour` of plan/health/slow_links.py."""
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters |= {"utc": _utc, "span": span, "usd": _usd}
    attempts: Sequence[Told] = told["attempts"]
    curves = {name: _lines(attempts, name, thin) for name in (*CURVES, "held_out")}
    shown = [(title, _curve(curves, name, title, attempts)) for name, title in CURVES.items() if curves[name]]
    source = next((row["source"] for row in reversed(attempts) if row["source"]), "")
    rows = _machines(told)
    note = SOURCES.get(source, "" if shown else f"Only steps were reported: {UNREPORTED}.") if attempts else ""
    return made.from_string(Path(__file__).with_name("page.html").read_text()).render(
        **{**told, "config": _text(told["config"]), "environment": _text(told["environment"])},
        model=told["manifest"]["model"],
        tiles=_tiles(told),
        note=note,
        curves=shown,
        held_out=bool(curves["held_out"]),
        redone=any(line.again for lines in curves.values() for line in lines),
        notices=any(row["notices"] for row in attempts),
        machines=rows and [Markup(plots.machines(rows, width, "time line")) for width in (WIDE, plots.WIDTH)],  # noqa: S704
        phases=[name for name in plots.COLOUR if any(span.phase == name for spans in rows.values() for span in spans)],
        steps=told["timeline"]["steps"] if told["timeline"] else [],
        run_usd=_usd(_of_run(told).get("usd")),
        pairs=_pairs(told["bandwidth"], colour),
    )


def _lines(attempts: Sequence[Told], figure: str, thin: Thin) -> list[Line]:
    """A line for each attempt, in two where a later one went back behind its end."""
    made = []
    for place, row in enumerate(attempts):
        points = thin(row["points"].get(figure, []), MOST_POINTS)
        back = min((later["resume_step"] or 0 for later in attempts[place + 1 :]), default=math.inf)
        kept = [point for point in points if point[0] <= back]
        again = points[max(len(kept) - 1, 0) :] if len(kept) < len(points) else []
        name = "held" if figure == "held_out" else "train"
        made += [Line(name, part, part is again) for part in (kept, again) if part]
    return made


def _curve(curves: Mapping[str, list[Line]], figure: str, title: str, attempts: Sequence[Told]) -> Markup:
    lines = curves[figure] + (curves["held_out"] if figure == "loss" else [])
    marks = Marks(
        {row["attempt"]: row["resume_step"] or 0 for row in attempts[1:]},
        [notice["step"] for row in attempts for notice in row["notices"] if notice["step"] is not None],
    )
    return Markup(plots.curve(lines, marks, f"{title} over steps"))  # noqa: S704 - matplotlib escapes its words


def _machines(told: Told) -> dict[str, list[Span]]:
    rows: dict[str, list[Span]] = {}
    for piece in told["timeline"]["phases"] if told["timeline"] else ():
        other = piece["run"] not in (None, told["run"])
        rows.setdefault(piece["node"], []).append(Span(piece["begin_unix"], piece["end_unix"], piece["phase"], other))
    return rows


def _tiles(told: Told) -> list[tuple[str, str]]:
    """The figures that a person looks for first."""
    attempts: Sequence[Told] = told["attempts"]
    run, report = _of_run(told), told["manifest"]["eval_report"] or {}

    def last(figure: str) -> str:
        values = [row["points"][figure][-1][1] for row in attempts if row["points"].get(figure)]
        return f"{values[-1]:.4g}" if values else "-"

    steps, of = run.get("steps"), next((row["of"] for row in reversed(attempts) if row["of"]), None)
    held_out = report.get("eval_loss_nats")
    seconds = sum((row["ended_unix"] or told["at_unix"]) - row["started_unix"] for row in attempts)
    return [
        ("steps", "-" if steps is None else f"{steps:.0f}" + (f" of {of:.0f}" if of else "")),
        ("loss", last("loss")),
        ("held-out loss", f"{held_out:.4g}" if isinstance(held_out, float) else last("held_out")),
        ("tokens/s", last("tokens_per_s")),
        ("took", span(seconds)),
        ("attempts", str(len(attempts))),
        ("cost", _usd(run.get("usd"))),
    ]


def _of_run(told: Told) -> Told:
    return next((row for row in (told["cost"] or {"runs": ()})["runs"] if row["run"] == told["run"]), {})


def _pairs(found: Told | None, colour: Callable[[float], str]) -> list[dict[str, Any]]:
    matrix = found["gbps"] if found else []
    best = max((value for row in matrix for value in row if value), default=1.0)

    def cell(row: int, column: int) -> dict[str, str]:
        value = matrix[row][column]
        if row == column:
            return {"text": "", "colour": "transparent"}
        if value is None:
            return {"text": "?", "colour": "#ccc"}
        return {"text": f"{value:.3g}", "colour": colour(value / best)}

    places = range(len(matrix))
    return [{"name": found["nodes"][row], "cells": [cell(row, at) for at in places]} for row in places] if found else []


def _text(data: Any) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _utc(unix: float) -> str:
    return datetime.datetime.fromtimestamp(unix, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _usd(value: float | None) -> str:
    return "cost unknown" if value is None else f"{value:.2f} USD"
