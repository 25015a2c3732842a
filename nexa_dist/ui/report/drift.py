"""Shares of the bins of each column, of two versions side by side, as an SVG by matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from nexa_dist.ui.report.plots import HEIGHT, WIDTH

ACROSS = 3
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "nexa", "text.parse_math": False, "font.size": 8,
         "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip


def drawn(drift: Mapping[str, Mapping[str, Any]], old: str, new: str) -> str:
    """`drift` is what stages/data/statistics.drift found, by column."""
    columns = {name: one for name, one in drift.items() if one["old"]}
    rows = max(1, math.ceil(len(columns) / ACROSS))
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH * ACROSS, HEIGHT * rows), layout="constrained")
        for at, (name, one) in enumerate(columns.items()):
            axes = figure.add_subplot(rows, ACROSS, at + 1)
            places = range(len(one["old"]))
            axes.bar([x - 0.2 for x in places], one["old"], 0.4, label=old, color="#8fa3b5")
            axes.bar([x + 0.2 for x in places], one["new"], 0.4, label=new, color="#c4622d")
            ks = "" if one["ks"] is None else f", KS {one['ks']:.3f}"
            axes.set_title(f"{_shown(name, 40)} ({one['of']}): PSI {one['psi']:.3f}{ks}")
            axes.set_xticks(list(places), [_shown(label) for label in one["labels"]], rotation=60)
            if at == 0:
                axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _shown(text: str, most: int = 12) -> str:
    """The beginning of a value that somebody's data has: a control character is none of XML's."""
    return "".join(char if char.isprintable() else "·" for char in text[:most])
