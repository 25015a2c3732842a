"""Slow nodes and links, from what each node sends to each other one; and a picture of them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

SLOW = 0.5
"""Below this part of what the others have, a link is slow."""
Matrix = Sequence[Sequence[float | None]]
"""Gbit/s from each node (row) to each (column); None where it was not measured."""


@dataclass(frozen=True)
class Slow:
    """`peer` is "" when the node itself is slow: all that it sends, or all that it gets."""

    node: str
    peer: str
    gbps: float
    usual_gbps: float


def slow(names: Sequence[str], matrix: Matrix, floor_gbps: float = 0.0, at_most: Matrix = ()) -> list[Slow]:
    """The slow ones, nodes before links; none that `at_most`, the figures without the waits for a CPU, acquits.

    With three nodes or more a link is held against links that have nothing to do with one of its ends, so that a slow
    node does not make slowness usual; with two against the way back.
    """
    known = {
        (row, column): value
        for row, values in enumerate(matrix)
        for column, value in enumerate(values)
        if value is not None and row != column
    }
    usual = {link: _usual(known, link) for link in known}
    could = {link: (at_most[link[0]][link[1]] if at_most else None) or gbps for link, gbps in known.items()}
    bad = {link for link in known if could[link] < max(SLOW * usual[link], floor_gbps)}
    nodes = [index for index in range(len(names)) if len(names) > 2 and _is_slow(index, known, bad)]
    found = []
    for index in nodes:
        mine = [link for link in bad if index in link]
        best = max(known[link] for link in mine)
        found.append(Slow(names[index], "", best, max(usual[link] for link in mine)))
    for row, column in sorted(bad):
        if row not in nodes and column not in nodes:
            found.append(Slow(names[row], names[column], known[row, column], usual[row, column]))
    return found


def _usual(known: Mapping[tuple[int, int], float], link: tuple[int, int]) -> float:
    without = [[gbps for other, gbps in known.items() if end not in other] for end in link]
    medians = [statistics.median(speeds) for speeds in without if speeds]
    return max(medians) if medians else known.get((link[1], link[0]), 0.0)


def _is_slow(index: int, known: Mapping[tuple[int, int], float], bad: set[tuple[int, int]]) -> bool:
    for end in (0, 1):
        mine = {link for link in known if link[end] == index}
        if len(mine) > 1 and mine <= bad:
            return True
    return False


def best_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Best figure of each part in two tests of the same group; the other test where one of them failed."""
    if "matrix" not in one or "matrix" not in other:
        return one if "matrix" in one else other

    def best(name: str) -> list[list[float | None]]:
        pairs = [zip(*rows, strict=True) for rows in zip(one[name], other[name], strict=True)]
        return [[max((v for v in pair if v is not None), default=None) for pair in row] for row in pairs]

    return {
        **other,
        "busbw_gb_s": max(one["busbw_gb_s"], other["busbw_gb_s"]),
        "latency_us": min(one["latency_us"], other["latency_us"]),
        "matrix": best("matrix"),
        "at_most": best("at_most"),
        "rounds_left": min(one["rounds_left"], other["rounds_left"]),
    }


CELL, EDGE = 64, 90


def picture(title: str, names: Sequence[str], matrix: Matrix) -> str:
    """The matrix as SVG: a row for each sender, coloured by its part of the fastest link."""
    fastest = max((value for row in matrix for value in row if value), default=1.0)
    width, height = EDGE + CELL * len(names) + 10, EDGE + CELL * len(names) + 30
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="10" y="40" fill="#555">Gbit/s from each row to each column; best {fastest:.3g}</text>',
    ]
    for index, name in enumerate(names):
        middle = EDGE + CELL * index + CELL / 2
        made.append(f'<text x="{middle}" y="{EDGE - 10}" text-anchor="middle">{escape(name)}</text>')
        made.append(f'<text x="{EDGE - 10}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>')
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            x, y = EDGE + CELL * column, EDGE + CELL * row
            fill = "#eeeeee" if value is None else colour(value / fastest)
            made.append(f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="4" fill="{fill}"/>')
            text = "" if row == column else "?" if value is None else f"{value:.3g}"
            made.append(f'<text x="{x + CELL / 2 - 1}" y="{y + CELL / 2 + 4}" text-anchor="middle">{text}</text>')
    return "\n".join([*made, "</svg>", ""])


def colour(part: float) -> str:
    """Red for a link that carries nothing, yellow for half of the best, green for the best."""
    return f"hsl({round(120 * min(1.0, max(0.0, part)))}, 65%, 70%)"
