"""What to do when an attempt of a run has ended. Pure: the same facts give the same decision.

An attempt makes progress when it reaches a step that no attempt before it had reached. What fails again and again
without progress is given up, since every restart costs money: three times in a row at the same step, twice in a row
before the first step, or `restarts_per_hour` times within an hour for any reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexa_dist.model import Decision, End, Kind

OURS: frozenset[Kind] = frozenset(("prepare", "start", "rank", "killed", "oom", "launcher", "agent", "hang"))
"""Ends that the program or its environment brought about; the others come from the cloud or from people."""
SAME_STEP = 3
FIRST_STEP = 2
HOUR_S = 3600.0
LONG_S = 600.0
"""An attempt that reports no steps at all and runs for so long counts as progress."""
PAUSES_S = (0.0, 2.0, 5.0, 15.0, 30.0, 60.0)
LOOK_AGAIN_S = 5.0
ASK_AGAIN_S = 30.0
"""Seconds between two tries to find capacity."""


@dataclass(frozen=True)
class Nodes:
    """Where the nodes of the run stand: `fit` answer and are clean, `lost` are gone, silent or about to be taken."""

    fit: tuple[str, ...]
    lost: tuple[str, ...] = ()
    replaceable: bool = False
    """Whether the provider can make a lost node anew."""
    refused: str = ""
    """Why the last try to do so failed."""
    waited_s: float = 0.0
    """Seconds for which nodes have been missing."""


@dataclass(frozen=True)
class Policy:
    """What train.yaml allows."""

    restarts_per_hour: int = 10
    min_nodes: int | None = None
    wait_s: float = 600.0


def decide(ends: Sequence[End], nodes: Nodes, policy: Policy, seconds_left: float | None = None) -> Decision:
    """The next act, from every end so far (oldest first). `seconds_left`: until the run's deadline."""
    last = ends[-1]
    if last.kind == "completed":
        return Decision("done", "")
    if last.kind in ("stopped", "deadline", "budget", "disconnected"):
        return Decision("stop", last.words)
    if last.kind == "config":
        return Decision("stop", f"{last.words}: another try would end the same way")
    if seconds_left is not None and seconds_left <= 0:
        return Decision("stop", "deadline")
    if given_up := _given_up(ends, policy):
        return Decision("stop", given_up)
    if nodes.lost:
        return _without(nodes, policy)
    pause = PAUSES_S[min(max(len(_barren(ends)) - 1, 0), len(PAUSES_S) - 1)]
    return Decision("restart", last.words, nodes.fit, pause)


def _given_up(ends: Sequence[End], policy: Policy) -> str:
    """Why nothing is started again; empty when it is."""
    last = ends[-1]
    if policy.restarts_per_hour == 0:
        return last.words
    barren = _barren(ends)
    recent = [end for end in barren if last.ended_unix - end.ended_unix < HOUR_S]
    if len(recent) > policy.restarts_per_hour:
        return f"{last.words}: {len(recent)} ends within an hour without progress"
    if last.kind not in OURS:
        return ""
    same = 0
    for end in reversed(barren):
        if end.kind not in OURS or end.last_step != last.last_step:
            break
        same += 1
    at_start = not _stepped(last)
    if same >= (FIRST_STEP if at_start else SAME_STEP):
        where = "before its first step" if at_start else f"at step {last.last_step}"
        return f"{last.words}: {same} times in a row {where}"
    return ""


def _stepped(end: End) -> bool:
    """Whether the attempt did a step; one that reports none is judged by the time it ran."""
    if end.last_step is None:
        return end.ended_unix - end.started_unix >= LONG_S
    return end.last_step > (end.first_step or 0)


def _barren(ends: Sequence[End]) -> list[End]:
    """The newest attempts in a row that reached no step that one before had not reached, oldest first."""
    best: int | None = None
    found: list[End] = []
    for end in ends:
        if end.last_step is None:
            progress = end.ended_unix - end.started_unix >= LONG_S
        else:
            progress = end.last_step > (best if best is not None else end.first_step or 0)
            best = max(best or 0, end.last_step)
        found = [end] if progress else [*found, end]
    return found


def _without(nodes: Nodes, policy: Policy) -> Decision:
    """Nodes are missing: make them anew, wait for them, or go on with fewer."""
    names = ", ".join(nodes.lost)
    if nodes.replaceable and not nodes.refused:
        return Decision("replace", f"{names} made anew", nodes.lost)
    if nodes.waited_s < policy.wait_s:
        if nodes.replaceable:
            return Decision("wait", f"{names} cannot be made anew yet: {nodes.refused}", nodes.lost, ASK_AGAIN_S)
        return Decision("wait", f"{names} may come back", nodes.lost, LOOK_AGAIN_S)
    if policy.min_nodes is not None and len(nodes.fit) >= policy.min_nodes:
        return Decision("shrink", f"without {names}", nodes.fit)
    short = f"; {len(nodes.fit)} nodes are left, min_nodes is {policy.min_nodes}" if policy.min_nodes else ""
    return Decision("stop", f"{names} did not come back in {nodes.waited_s / 60:.0f} min{short}")
