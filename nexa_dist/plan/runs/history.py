"""Figures of a run over its steps: as its ranks reported them, or as rank 0's lines have them. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nexa_dist.node.protocol import Event

FIGURES = ("loss", "held_out", "learning_rate", "tokens_per_s")
Points = list[tuple[int, float]]
"""(step, value), in the order in which they came."""
LARGEST = 1e15
"""Steps that no training reaches."""


@dataclass
class History:
    """One attempt on one node. `points` are rank 0's, by figure."""

    points: dict[str, Points] = field(default_factory=dict)
    steps: list[tuple[float, int]] = field(default_factory=list)
    """(unix time on the node, step of rank 0)."""
    of: float | None = None
    notices: list[dict[str, Any]] = field(default_factory=list)

    def step_at(self, unix: float) -> int | None:
        """Step that rank 0 had done by then; None before its first report."""
        place = bisect.bisect_right(self.steps, unix, key=lambda row: row[0])
        return self.steps[place - 1][1] if place else None


def of_events(events: Iterable[Mapping[str, Any]]) -> dict[int, History]:
    """Histories by attempt, from the events of one node. An event says again what was reported last, so a figure that
    stays the same is none of a later step; only a learning rate may well be constant."""
    found: dict[int, History] = {}
    now = History()
    for event in events:
        name = event["event"]
        if name == Event.STARTED:
            now = found.setdefault(event["attempt"], History())
        elif name == Event.NOTICE:
            now.notices.append({"seen_unix": event["at"], "acts_unix": event.get("at_unix")})
        elif name == Event.PROGRESS and (step := event["steps"].get("0")) is not None:
            now.steps.append((event["at"], step))
            now.of = event.get("of", now.of)
            for figure in FIGURES:
                points, value = now.points.setdefault(figure, []), event.get(figure)
                if value is not None and (not points or figure == "learning_rate" or points[-1][1] != value):
                    points.append((step, value))
    return found


def of_lines(lines: Iterable[bytes], read: Callable[[bytes], Mapping[str, float]]) -> dict[str, Points]:
    """Points from the lines of rank 0, by `read` (ui/run_view/step_lines.py). A figure without a step is of the one
    before."""
    found: dict[str, Points] = {}
    step: int | None = None
    for line in lines:
        for state in line.split(b"\r"):  # a progress bar rewrites its line
            told = read(state)
            step = int(told["step"]) if told.get("step", LARGEST) < LARGEST else step
            for figure in FIGURES:
                if figure in told and step is not None:
                    points = found.setdefault(figure, [])
                    if points and points[-1][0] == step:
                        points.pop()
                    points.append((step, told[figure]))
    return found


def thinned(points: Points, most: int) -> Points:
    """Thin the points out to at most so many: of each stretch the smallest and the largest, so that no spike is
    lost."""
    if len(points) <= most:
        return points
    size = -(-len(points) // (most // 2))
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        point
        for part in parts
        for point in sorted({min(part, key=lambda row: row[1]), max(part, key=lambda row: row[1])})
    ]
