"""Detection of hangs: the progress of this node's ranks, and for how long they stand still. `Seen` and `Stall` are
given the time."""

from __future__ import annotations

import os
import re
from typing import Any

from ..rank import read_progress

RANK_FOLDER = re.compile(r"rank_[0-9]{1,7}", re.ASCII)
SEEN_TICK_S = 2.0
"""A longer gap between two looks means that the machine or the agent slept; only so much of it counts."""
MOST_OWN_S = 1e6
"""Own seconds a step of a rank, of which more are no such thing."""
SHOWN = ("of", "loss", "held_out", "learning_rate", "tokens_per_s", "saved", "durable")


def forget(run_dir: str) -> None:
    """Removes what ranks of an earlier attempt reported."""
    for name in os.listdir(run_dir):
        path = os.path.join(run_dir, name, "progress.json")
        if name.startswith("rank_") and os.path.exists(path):
            os.unlink(path)


def read_all(run_dir: str, before: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Reports by rank; one that cannot be read at this moment stays as it was `before`."""
    found = dict(before)
    for name in os.listdir(run_dir):
        if RANK_FOLDER.fullmatch(name):
            report = read_progress(run_dir, int(name[5:]))
            if report is not None:
                found[int(name[5:])] = report
    return found


def through(reports: dict[int, dict[str, Any]]) -> set[int]:
    """Ranks that have done their last step: an evaluation or a save that follows may take as long as it likes."""
    of = fields(reports)["of"]
    return {r for r, report in reports.items() if type(of) in (int, float) and 0 < of <= report["step"]}


def fields(reports: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The `progress` event: the step of every rank, the rest from the lowest rank that tells it."""
    steps = {str(rank): reports[rank]["step"] for rank in sorted(reports)}
    rest = {key: next((r[key] for _, r in sorted(reports.items()) if key in r), None) for key in SHOWN}
    own = {str(rank): report.get("own_s") for rank, report in sorted(reports.items()) if _seconds(report.get("own_s"))}
    return {"steps": steps, **rest, **({"own_s": own} if own else {})}


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < MOST_OWN_S


class Seen:
    """Clock of the time that the agent was awake: adds up the seconds between two looks."""

    def __init__(self) -> None:
        self.last: float | None = None

    def step(self, now: float) -> float:
        passed = 0.0 if self.last is None else min(max(now - self.last, 0.0), SEEN_TICK_S)
        self.last = now
        return passed


class Stall:
    """Counts how long the slowest rank has not moved. A rank that is through no longer counts."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s, self.seen = timeout_s, Seen()
        self.stalled_s, self.slowest = 0.0, None  # type: float, int | None

    def step(self, now: float, steps: dict[int, int], gone: set[int]) -> bool:
        """`steps` are the steps that ranks reported, `gone` the ranks that have ended. True: they hang."""
        passed = self.seen.step(now)
        left = [step for rank, step in steps.items() if rank not in gone]
        slowest = min(left) if left else None
        if slowest is None or slowest != self.slowest:
            self.slowest, self.stalled_s = slowest, 0.0
            return False
        self.stalled_s += passed
        return self.timeout_s is not None and self.stalled_s >= self.timeout_s


def stuck(steps: dict[int, int], states: dict[int, str]) -> list[int]:
    """The ranks to name: those that are stopped or behind the others; else those in the kernel; else all."""
    most = max(steps.values(), default=0)
    named = [r for r in states if states[r] in "Tt" or steps.get(r, most) < most]
    return sorted(named or [r for r in states if states[r] == "D"] or states)
