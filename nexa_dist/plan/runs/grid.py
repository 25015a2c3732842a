"""A grid of trainings: every combination of the values that `--grid` names, and a picture of what came of them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from nexa_dist.errors import UsageError

MOST_POINTS = 500
_UNFIT = re.compile(r"[^A-Za-z0-9._:/=+-]")
WIDTH, HEIGHT, EDGE = 360, 260, 56
"""Size of one panel, and the room for its scale, in pixels."""


def points(texts: Sequence[str]) -> list[dict[str, str]]:
    """`a.b=x,y` and `c=1,2` as {a.b: x, c: 1}, {a.b: x, c: 2}, …: the first key changes slowest. No text: one empty
    point. Raises UsageError for what is no such text."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, equals, written = text.partition("=")
        values = [value.strip() for value in _split(written)]
        if not equals or not key or not all(values):
            raise UsageError(f"--grid {text}: expected KEY=VALUE,VALUE…", hint="--grid trainer.learning_rate=1e-3,3e-4")
        if key in axes or len({*values}) != len(values):
            twice = key if key in axes else next(value for value in values if values.count(value) > 1)
            raise UsageError(f"--grid {text}: {twice} is there twice")
        axes[key] = values
    count = math.prod(map(len, axes.values()))
    if count > MOST_POINTS:
        raise UsageError(f"--grid: {count} combinations; at most {MOST_POINTS}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _split(text: str) -> list[str]:
    """Split at each comma that is in no brackets and no quotes: `[a, b],[c]` are two lists."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += char
    return parts


def tag(key: str, value: str) -> str:
    """The tag of a point; what a tag may not have is `_` in it."""
    return _UNFIT.sub("_", f"grid:{key}={value}")[:64]


@dataclass(frozen=True)
class Dot:
    """One run of a grid that has a loss."""

    point: Mapping[str, str]
    loss: float


def picture(title: str, dots: Sequence[Dot]) -> str:
    """SVG: for each parameter the loss over its values. Runs that differ in that one alone are joined by a line. Empty
    without a parameter that has two values, or a loss."""
    dots = [dot for dot in dots if math.isfinite(dot.loss)]
    keys = [key for key in dict.fromkeys(k for d in dots for k in d.point) if len({d.point.get(key) for d in dots}) > 1]
    if not keys:
        return ""
    best = min(dots, key=lambda dot: dot.loss)
    told = ", ".join(f"{key}={value}" for key, value in best.point.items())
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(keys)}" height="{HEIGHT + 50}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="10" y="38" fill="#555">lowest loss {best.loss:.4g}: {escape(told)}</text>',
    ]
    for place, key in enumerate(keys):
        made += [f'<g transform="translate({place * WIDTH},50)">', *_panel(key, dots, best), "</g>"]
    return "\n".join([*made, "</svg>", ""])


def _panel(key: str, dots: Sequence[Dot], best: Dot) -> list[str]:
    values = list(dict.fromkeys(dot.point[key] for dot in dots if key in dot.point))
    along = _places(values)
    low, high = min(dot.loss for dot in dots), max(dot.loss for dot in dots)
    right, bottom = WIDTH - 20, HEIGHT - 40

    def across(value: str) -> float:
        return round(EDGE + 10 + along[value] * (right - EDGE - 20), 1)

    def at(dot: Dot) -> tuple[float, float]:
        up = (dot.loss - low) / (high - low) if high > low else 0.5
        return across(dot.point[key]), round(bottom - 10 - up * (bottom - 30), 1)

    made = [
        f'<path d="M{EDGE} 10V{bottom}H{right}" fill="none" stroke="#999"/>',
        f'<text x="{(EDGE + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(key)}</text>',
        f'<text x="{EDGE - 4}" y="24" text-anchor="end">{high:.4g}</text>',
        f'<text x="{EDGE - 4}" y="{bottom - 6}" text-anchor="end">{low:.4g}</text>',
    ]
    step = math.ceil(len(values) / 8)  # more words would lie upon each other
    for value in sorted(values, key=lambda value: along[value])[::step]:
        made.append(f'<text x="{across(value)}" y="{bottom + 16}" text-anchor="middle">{escape(value[:12])}</text>')
    lines: dict[tuple[tuple[str, str], ...], list[Dot]] = {}
    for dot in dots:
        if key in dot.point:
            lines.setdefault(tuple((k, v) for k, v in dot.point.items() if k != key), []).append(dot)
    for place, (others, row) in enumerate(lines.items()):
        colour = f"hsl({(place * 137) % 360}, 60%, 42%)"
        row.sort(key=lambda dot: along[dot.point[key]])
        path = " ".join(f"{x},{y}" for x, y in map(at, row))
        made.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.6"/>')
        for dot in row:
            x, y = at(dot)
            more = "".join(f", {k}={v}" for k, v in others)
            made.append(
                f'<circle cx="{x}" cy="{y}" r="{6 if dot is best else 4}" fill="{colour}">'
                f"<title>{escape(f'{key}={dot.point[key]}{more}: {dot.loss:.6g}')}</title></circle>"
            )
    return made


def _places(values: Sequence[str]) -> dict[str, float]:
    """Place of each value from 0 to 1: numbers by their size, or its logarithm where they span more than a factor of
    ten; words at equal distances."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if len({*numbers}) < 2 or not all(map(math.isfinite, numbers)):
        numbers = [float(place) for place in range(len(values))]
    elif min(numbers) > 0 and max(numbers) > 10 * min(numbers):
        numbers = [math.log(number) for number in numbers]
    low, high = min(numbers), max(numbers)
    return {value: (n - low) / (high - low) if high > low else 0.5 for value, n in zip(values, numbers, strict=True)}
