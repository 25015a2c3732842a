"""Phases of a run by its attempts: when its nodes trained, waited, and what they did twice. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_dist.model import GOES_ON

SKEW_S = 2.0
"""A smaller difference between the nodes' clocks and the controller's is the noise of asking."""

Row = Mapping[str, Any]
Event = dict[str, Any]


@dataclass
class _Done:
    """Steps of one attempt that nobody has had to do again so far."""

    row: Row
    first: int
    last: int
    seconds: float
    lost_steps: int = 0

    def back_to(self, step: int) -> None:
        """Lose what lies above `step`: the next attempt went on from there."""
        kept = max(self.first, min(self.last - self.lost_steps, step))
        self.lost_steps = self.last - kept


def events(run_id: str, attempts: Sequence[Row]) -> list[Event]:
    """`phase` and `lost` events of a ledger, from the attempts of run.json: oldest first, on the nodes' clocks."""
    made: list[Event] = []
    for place, row in enumerate(attempts):
        after = attempts[place + 1] if place + 1 < len(attempts) else None
        told = {"run": run_id, "attempt": row["attempt"]}
        nodes = list(row.get("ranks") or ())
        made += [_phase(began_unix(row), node, "training", told) for node in nodes]
        end = ended_unix(row) or (began_unix(after) if after else 0.0)
        if end:
            goes_on = (row.get("next") or {}).get("action", "restart" if after else "stop") in GOES_ON
            waits = told if goes_on else {"run": None, "attempt": None}
            made += [_phase(end, node, "recovering" if goes_on else "idle", waits) for node in nodes]
        if after:
            gone = [node for node in nodes if node not in (after.get("ranks") or ())]
            none = {"run": None, "attempt": None}
            made += [_phase(began_unix(after), node, "idle", none) for node in gone]
    return made + _lost(run_id, attempts)


def _phase(at: float, node: str, phase: str, told: Event) -> Event:
    return {"event": "phase", "at": at, "node": node, "phase": phase, **told}


def began_unix(row: Row) -> float:
    """Unix time at which the attempt began, by the clocks of its nodes."""
    return _at(row, "started_unix")


def ended_unix(row: Row) -> float:
    """Unix time at which the attempt ended, by the same clocks; 0 while it runs."""
    return _at(row, "ended_unix")


def _at(row: Row, key: str) -> float:
    """A time of the record as the nodes' clocks have it; 0 when it is not there."""
    at = row.get(key)
    ahead = [float(s) for s in (row.get("skew_s") or {}).values()]
    skew = statistics.median(ahead) if ahead else 0.0
    return float(at) + (skew if abs(skew) >= SKEW_S else 0.0) if at else 0.0


def _lost(run_id: str, attempts: Sequence[Row]) -> list[Event]:
    """Lost work, which later attempts had to do again, in seconds of the attempt that had done it, by its share of the
    steps.

    An attempt that did no step is lost whole, unless it completed or somebody stopped it.
    """
    done: list[_Done] = []
    for place, row in enumerate(attempts):
        first, last = row.get("resume_step") or 0, _last_step(row)
        for earlier in done:
            earlier.back_to(first)
        seconds = max(0.0, (row.get("ended_unix") or 0.0) - row["started_unix"])
        if last is not None and last > first:
            done.append(_Done(row, first, last, seconds))
        elif row.get("ended_unix") and (row.get("state") == "failed" or place + 1 < len(attempts)):
            done.append(_Done(row, 0, 1, seconds, lost_steps=1))
    return [
        {
            "event": "lost",
            "at": ended_unix(each.row),
            "run": run_id,
            "attempt": each.row["attempt"],
            "seconds": round(each.seconds * each.lost_steps / (each.last - each.first), 3),
            "why": str((each.row.get("end") or {}).get("words") or each.row.get("cause") or ""),
        }
        for each in done
        if each.lost_steps and each.row.get("ended_unix")
    ]


def _last_step(row: Row) -> int | None:
    step = (row.get("end") or {}).get("last_step")
    return step if isinstance(step, int) else None


def steps(attempts: Sequence[Row]) -> int | None:
    """The highest step that an attempt reached; None when none was told."""
    return max((step for row in attempts if (step := _last_step(row)) is not None), default=None)
