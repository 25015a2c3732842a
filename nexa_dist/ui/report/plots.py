"""Curves and time lines as SVG, by matplotlib. Their colours are variables of the page, light and dark."""

from __future__ import annotations

import datetime
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it talks of its font cache

import matplotlib.dates  # noqa: E402
import matplotlib.style  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: E402

_dates: Any = matplotlib.dates  # it carries no types
VARIABLES = {
    "#010101": "ink", "#020202": "faint", "#030303": "line", "#040404": "train", "#050505": "held", "#060606": "notice",
    "#070707": "booting", "#080808": "bootstrapping", "#090909": "training", "#0a0a0a": "lost", "#0b0b0b": "recovering",
    "#0c0c0c": "idle",
}  # fmt: skip
"""Matplotlib wants colours, the page has variables: each stands for one."""
COLOUR = {name: colour for colour, name in VARIABLES.items()}
STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none", "axes.edgecolor": COLOUR["line"], "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": COLOUR["line"], "grid.linewidth": 0.5,
    "text.color": COLOUR["ink"], "axes.labelcolor": COLOUR["faint"], "xtick.color": COLOUR["faint"],
    "ytick.color": COLOUR["faint"], "lines.linewidth": 1.4, "lines.markersize": 3, "savefig.facecolor": "none",
}  # fmt: skip
WIDTH, HEIGHT = 3.8, 2.3
"""Inches of a curve: as wide as a phone, so that its words are readable there."""
MOST_LABELS = 6
UTC, DAY_S = datetime.UTC, 86_400
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """Points of one colour. Those that are `again` were done again later."""

    colour: str
    points: Points
    again: bool = False


@dataclass(frozen=True)
class Span:
    """Span of a machine's time in one phase, from and to a unix time, for this run or for an `other` one."""

    begin: float
    end: float
    phase: str
    other: bool


@dataclass(frozen=True)
class Marks:
    """Steps at which an attempt began (by its number), and at which a notice came."""

    attempts: Mapping[int, int]
    notices: Sequence[int]


def curve(lines: Sequence[Line], marks: Marks, title: str) -> str:
    """Values over steps."""

    def draw(axes: Axes) -> None:
        for line in lines:
            steps, values = zip(*line.points, strict=True) if line.points else ((), ())
            marker = "o" if line.colour == "held" or len(steps) < 3 else ""
            axes.plot(steps, values, color=COLOUR[line.colour], alpha=0.35 if line.again else 1, marker=marker)
        for number, step in marks.attempts.items():
            axes.axvline(step, color=COLOUR["faint"], linewidth=0.8)
            if len(marks.attempts) <= MOST_LABELS:
                at = ("data", "axes fraction")
                axes.annotate(
                    f" attempt {number}", (step, 1), xycoords=at, rotation=90, va="top", ha="right", fontsize=7
                )
        for step in marks.notices:
            axes.axvline(step, color=COLOUR["notice"], linewidth=1, linestyle=(0, (3, 2)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_short)
        axes.yaxis.set_major_formatter(_short)
        axes.set_xlabel("step")

    return _svg(draw, WIDTH, HEIGHT, title)


def _short(value: float, _: object) -> str:
    return EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{value:.3g}"


def machines(rows: Mapping[str, Sequence[Span]], width: float, title: str) -> str:
    """Plot of each machine's phases."""

    def draw(axes: Axes) -> None:
        for place, spans in enumerate(rows.values()):
            for span in spans:
                left, right = (at / DAY_S for at in (span.begin, span.end))
                alpha = 0.35 if span.other else 1
                axes.barh(place, right - left, left=left, height=0.6, color=COLOUR[span.phase], alpha=alpha)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        locator = _dates.AutoDateLocator(tz=UTC, minticks=2, maxticks=max(3, round(width)))
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(_dates.ConciseDateFormatter(locator, tz=UTC))

    return _svg(draw, width, 0.6 + 0.3 * len(rows), title)


def _svg(draw: Callable[[Axes], None], width: float, height: float, title: str) -> str:
    """An element for the page: without the header that names a DTD, with variables for its colours."""
    with matplotlib.style.context(["default", dict(STYLE)]):  # not what a matplotlibrc of this folder says
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
