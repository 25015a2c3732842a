"""The leaderboard as one self-contained page. All of it is data of strangers: every word is escaped, and the page says
to the browser that nothing in it may run or be fetched."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Told = Mapping[str, Any]
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Leaderboard</title><style>
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; max-width: 70rem; }
h2 { margin: 2rem 0 .2rem; } p { margin: .2rem 0 .8rem; opacity: .75; } .warning { color: #c60; opacity: 1; }
div { overflow-x: auto; } table { border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:nth-child(2), td:nth-child(2) { text-align: left; } td small { opacity: .7; }
meter { width: 5rem; height: .7rem; vertical-align: middle; }
</style></head><body><h1>Leaderboard</h1>
"""


def render(boards: Sequence[Told]) -> str:
    """HTML of what ops/leaderboard.py gathered."""
    return HEAD + "".join(map(_board, boards)) + "</body></html>\n"


def _board(board: Told) -> str:
    judge = f", judged by {board['judge']} ({str(board['judge_sha256'])[:8]})" if board["judge"] else ""
    told = f"{board['rows'][0]['rows']} rows{judge}; ranked by {board['by']}; 95 % intervals"
    warnings = "".join(f'<p class="warning">{escape(one)}</p>' for one in board["warnings"])
    names = board["figures"]
    head = ["", "run", *names, "run USD", "eval USD", "tokens/s", "evaluated"]
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = "".join(_row(place, row, names, board["by"]) for place, row in enumerate(board["rows"], 1))
    title = f"<h2>{escape(board['name'])}</h2><p>{escape(told)}</p>{warnings}"
    return f"{title}<div><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>\n"


def _row(place: int, row: Told, names: Sequence[str], by: str) -> str:
    figures = "".join(f"<td>{_figure(row['figures'].get(name), bar=name == by)}</td>" for name in names)
    day = datetime.datetime.fromtimestamp(row["at_unix"], datetime.UTC).strftime("%Y-%m-%d")
    usd = "".join(f"<td>{money(row[key])}</td>" for key in ("run_usd", "eval_usd"))
    speed = shown(row["tokens_per_s"])
    return f"<tr><td>{place}</td><td>{escape(row['run'])}</td>{figures}{usd}<td>{speed}</td><td>{day}</td></tr>"


def _figure(found: Told | None, *, bar: bool) -> str:
    if found is None or found["value"] is None:
        return "-"
    value = float(found["value"])
    span = f" <small>{_span(found)}</small>" if found["interval"] else ""
    missing = f" <small>{found['missing']} missing</small>" if found.get("missing") else ""
    meter = f'<meter min="0" max="1" value="{value:.4f}"></meter> ' if bar and 0 <= value <= 1 else ""
    return f"{meter}{shown(value)}{span}{missing}"


def _span(found: Told) -> str:
    low, high = found["interval"]
    return f"[{shown(low)}, {shown(high)}]"


def words(found: Told | None) -> str:
    """A figure for a terminal."""
    if found is None or found["value"] is None:
        return "-"
    span = f" {_span(found)}" if found["interval"] else ""
    return f"{shown(found['value'])}{span}" + (f", {found['missing']} missing" if found.get("missing") else "")


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) >= 1 else f"{value:.3f}"


def money(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
