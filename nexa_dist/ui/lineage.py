"""A tree as a picture: boxes from left to right, each tied to those that it came of. SVG, without a library."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, HEIGHT, GAP, ROW = 230, 46, 60, 62


def svg(tree: Mapping[str, Any]) -> str:
    """`tree` has label, kind, faults and parents (trees by name), as `nexa lineage --json` prints it."""
    boxes: list[str] = []
    deepest = lowest = 0

    def draw(one: Mapping[str, Any], depth: int, top: int) -> tuple[int, int]:
        """Draw a tree from a row on; the row of its box, and the first row below it."""
        nonlocal deepest, lowest
        deepest, rows, row = max(deepest, depth), [], top
        for name, parent in one["parents"].items():
            at, row = draw(parent, depth + 1, row)
            rows.append((name, at))
        mine = (rows[0][1] + rows[-1][1]) // 2 if rows else top
        row = max(row, top + 1)
        lowest = max(lowest, row)
        x, y = 10 + depth * (WIDTH + GAP), 10 + mine * ROW
        for name, at in rows:
            y2, x2 = 10 + at * ROW + HEIGHT / 2, x + WIDTH + GAP
            boxes.append(
                f'<path d="M{x + WIDTH} {y + HEIGHT / 2} C{x2 - 30} {y + HEIGHT / 2} {x + WIDTH + 30} {y2} {x2} {y2}"/>'
                f'<text class="faint" x="{x2 - 4}" y="{y2 - 5}" text-anchor="end">{escape(name)}</text>'
            )
        fill = "#fbe3e0" if one["faults"] else "#eef3f8"
        more = one["faults"][0] if one["faults"] else one["kind"]
        boxes.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}"/>'
            f'<text x="{x + 10}" y="{y + 19}">{escape(_short(one["label"]))}</text>'
            f'<text class="faint" x="{x + 10}" y="{y + 36}">{escape(_short(more))}</text>'
        )
        return mine, row

    draw(tree, 0, 0)
    size = f"{20 + (deepest + 1) * WIDTH + deepest * GAP} {10 + lowest * ROW}"
    style = "text{font:13px sans-serif;fill:#1c2733}.faint{font-size:11px;fill:#5b6b7a}"
    style += "path{fill:none;stroke:#8fa3b5}rect{stroke:#8fa3b5}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{style}</style>{"".join(boxes)}</svg>\n'
    )


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:14]}…{text[-17:]}"
