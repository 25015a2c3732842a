"""Evidence of one attempt, and the findings in it about each rank and node. Pure."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexa_dist.model import ACTIVE
from nexa_dist.node.protocol import HEARTBEAT_S, Event, Reason
from nexa_dist.plan.failures import collectives, log_tail
from nexa_dist.plan.failures.known.signature import Exit, Tier
from nexa_dist.plan.failures.log_reading import SHOWN_LINES, Finding, read
from nexa_dist.plan.failures.table import BY_NAME, TABLE

PHASES = ("", Reason.PREPARE, Reason.TORCHRUN, Reason.FAILURE)
"""Reasons of an agent that only say where to look."""
QUIET = ("killed", "terminated", "aborted", "unknown")
"""Ends that others bring about too."""
LATE_S = 2.0
"""So much later than it came an end may be written: each rank's by a process of its own, on a node that may be busy."""

Told = Mapping[str, Any]
"""An event of a node as wire.py lets it through: what a field may be was looked at there."""


@dataclass(frozen=True)
class RankEvidence:
    """The last bytes of one rank's log, and its end, when it is known."""

    node: str
    rank: int
    tail: bytes = b""
    exit: Exit | None = None


@dataclass(frozen=True)
class NodeEvidence:
    """One node's events of the attempt, and the last bytes of the logs that belong to no rank."""

    node: str
    events: tuple[Told, ...] = ()
    prepare: bytes = b""
    torchrun: bytes = b""
    agent: bytes = b""
    skew_s: float = 0.0
    """Skew of the node's clock: its seconds minus the controller's; 0 when nobody measured it."""
    setup: bytes = b""

    def of(self, name: str) -> Iterator[Told]:
        return (event for event in self.events if event["event"] == name)


@dataclass(frozen=True)
class Evidence:
    """All that the controller has of one attempt. `cause` are the words with which the supervisor closed it."""

    nodes: tuple[NodeEvidence, ...] = ()
    ranks: tuple[RankEvidence, ...] = ()
    state: str = "failed"
    cause: str = ""


def collected(evidence: Evidence) -> list[Finding]:
    """Every finding, in no order."""
    found = [*_stops(evidence), *_ranks(evidence), *_phases(evidence)]
    return found if evidence.state in ACTIVE else [*found, *_gone(evidence)]


# -- ranks -----------------------------------------------------------------------------------------------------


def _ranks(evidence: Evidence) -> Iterator[Finding]:
    nodes = {node.node: node for node in evidence.nodes}
    told = [(rank, _of_rank(rank) if rank.exit or evidence.state not in ACTIVE else None) for rank in evidence.ranks]
    for rank, found in told:
        node = nodes.get(rank.node, NodeEvidence(rank.node))
        if found is None:
            continue
        at = (
            rank.exit.at
            if rank.exit
            else max((e["at"] for e in node.events if e["event"] != Event.ENDED), default=math.inf)
        )
        stops = [e for e in (*node.of(Event.STOPPING), *node.of(Event.HANG)) if e["at"] <= at]
        wanted = any(e.get("reason") not in (Reason.FAILURE, None) or e["event"] == Event.HANG for e in stops)
        beside = [other for r, other in told if r is not rank and r.node == rank.node and other and other.exit]
        if found.signature.name == "distributed_checkpoint" and rank.rank not in _numbers(found.detail):
            found = replace(found, tier=Tier.FOLLOWS)
        if found.signature.name in QUIET and (stops or _ended_for(found, at, beside)):
            early = found.signature.name == "killed" and not _ended_for(found, at, beside)
            early = early and all(
                at - e["at"] < e.get("grace_s", 0.0) - 0.5 for e in stops
            )  # an agent gives the rank that time
            found = _before_it_was_ended(rank) or replace(found, tier=Tier.LATE if early else Tier.FOLLOWS)
        if wanted or (stops and found.tier == Tier.OWN):
            found = replace(found, tier=Tier.FOLLOWS)
        yield replace(found, at=at - node.skew_s)


def _ended_for(found: Finding, at: float, beside: Sequence[Finding]) -> bool:
    """Tell whether a rank may have been ended because another one of its node had failed: by torchrun, with SIGTERM and
    at last SIGKILL. One that lost its peer, or was itself ended so, may have been written down before the one that it
    lost."""
    for other in beside:
        assert other.exit is not None
        own = other.tier <= Tier.SETUP and other.signature.name != "terminated"
        if found.signature.name == "terminated":
            if other.exit.at < at + (LATE_S if own else 0.0):
                return True
        elif other.exit.at < at - (0.0 if own else LATE_S):
            return True
    return False


def _numbers(text: str) -> set[int]:
    """The ranks that a rank's own words name, in their first brackets."""
    return {int(number) for number in re.findall(r"[0-9]{1,7}", text.partition(")")[0])}


def _before_it_was_ended(rank: RankEvidence) -> Finding | None:
    """Finding of a rank that others ended, when its log closes with a known cause: it could not go by itself."""
    found = read(rank.tail, None) if log_tail.HEADER in rank.tail else None
    if found is None or found.tier != Tier.CAUSE:
        return None
    return replace(found, node=rank.node, rank=rank.rank, exit=rank.exit)


def _of_rank(rank: RankEvidence) -> Finding | None:
    """Finding in the log and the end of a rank; None for one that did not fail, or whose end nobody saw and whose log
    has no exception."""
    if (rank.exit and not rank.exit.bad) or (not rank.exit and log_tail.HEADER not in rank.tail):
        return None
    found = read(rank.tail, rank.exit)
    return replace(found, node=rank.node, rank=rank.rank) if found else None


# -- nodes -----------------------------------------------------------------------------------------------------


def _stops(evidence: Evidence) -> Iterator[Finding]:
    """Ends that an agent was told, or brought about by itself."""
    hang = _hang(evidence)
    if hang:
        yield hang
    noticed = False
    for node in evidence.nodes:
        for event in node.of(Event.NOTICE):
            noticed = True
            when = _clock(event["at_unix"]) if event.get("at_unix") else "a time not told"
            yield finding("spot_notice", node, event["at"], f"{event.get('action', 'stop')} at {when}")
    for node in evidence.nodes:
        ends = [e for e in node.of(Event.ENDED) if e.get("state") == "stopped"]
        for event in [*node.of(Event.STOPPING), *ends][:1]:
            name = next((s.name for s in TABLE if event.get("reason") in s.reasons), "")
            if name and not (name == "hang" and hang) and not (name == "spot_notice" and noticed):
                yield finding(name, node, event["at"])


def finding(name: str, node: NodeEvidence, at: float, detail: str = "") -> Finding:
    signature = BY_NAME[name]
    return Finding(signature, node.node, None, at - node.skew_s, signature.tier, detail)


def _hang(evidence: Evidence) -> Finding | None:
    """The rank that is behind, or frozen, or not where the others wait."""
    events = [(node, event) for node in evidence.nodes for event in node.of(Event.HANG)]
    if not events:
        return None
    told = [event for _, event in events]
    steps = {int(rank): at for event in told for rank, at in event.get("steps", {}).items() if at is not None}
    states = {int(rank): state for event in told for rank, state in event.get("states", {}).items()}
    tails = {r.rank: log_tail.clean(r.tail) for r in evidence.ranks}
    frames = {rank: log_tail.stack(tails.get(rank, b"")) for rank in steps}

    late = collectives.behind(flights(evidence))

    def suspicion(rank: int) -> tuple[bool, int, bool, int, int]:
        waits = 2 if log_tail.waits_for_others(frames[rank]) else 1 if frames[rank] else 0
        return states.get(rank, "") not in ("T", "t"), steps[rank], rank not in late, waits, rank

    first = min(events, key=lambda pair: pair[1]["at"] - pair[0].skew_s)
    node, event = first
    detail = f"{event['stalled_s']:.0f} s"
    if not steps:
        return finding("hang", node, event["at"], detail)
    rank = min(steps, key=suspicion)
    detail += f": rank {rank} is at step {steps[rank]}"
    behind = max(steps.values())
    detail += f" while others are at {behind}" if behind > steps[rank] else ""
    detail += " and was frozen (stopped by a signal)" if states.get(rank, "") in ("T", "t") else ""
    at = f", it stands in {log_tail.standing(frames[rank])}" if frames[rank] else ""
    where = next((r.node for r in evidence.ranks if r.rank == rank), node.node)
    lines = tuple(f"{frame}".encode() for frame in frames[rank][:6])
    return replace(finding("hang", node, event["at"], detail + at), node=where, rank=rank, lines=lines)


def flights(evidence: Evidence) -> list[Told]:
    """What ranks told of their collectives; of ranks of another node a node has nothing to tell."""
    at = {rank.rank: rank.node for rank in evidence.ranks}
    told = [(node.node, event) for node in evidence.nodes for event in node.of(Event.FLIGHT)]
    return [event for node, event in told if at.get(event["rank"]) == node]


def _clock(unix: float) -> str:
    return time.strftime("%H:%M:%S UTC", time.gmtime(unix))


def _phases(evidence: Evidence) -> Iterator[Finding]:
    """Findings about a node outside of its ranks: preparing, torchrun, the agent."""
    failed = {rank.node for rank in evidence.ranks if rank.exit and rank.exit.bad}
    for node in evidence.nodes:
        for event in node.of(Event.ENDED):
            reason, code = event.get("reason", ""), event.get("code", 1)
            known = (Reason.HANG, Reason.TORCHRUN) if node.node in failed else (Reason.HANG,)
            if event.get("state") != "failed" or reason in known:
                continue
            end = Exit(event["at"], code if code < 128 else 0, code - 128 if code > 128 else 0)
            found = _of_phase(node, reason, end)
            yield replace(found, node=node.node, at=event["at"] - node.skew_s)


def _of_phase(node: NodeEvidence, reason: str, end: Exit) -> Finding:
    if reason == Reason.TORCHRUN and end.signal == 9:
        found = read(node.torchrun, None)
        known = found if found and found.signature.name != "python_exception" else None
        return known or replace(finding("torchrun_killed", node, end.at), tier=Tier.SETUP, exit=end)
    if reason.startswith(Reason.SETUP):
        shown = log_tail.last_lines(log_tail.clean(node.setup), SHOWN_LINES)
        return replace(finding("setup_failed", node, end.at, reason.partition(": ")[2]), lines=shown, exit=end)
    if reason not in PHASES:  # the agent's own words
        found = read(reason.encode(), None)
        return found or finding("not_started", node, end.at, reason)
    found = read(node.prepare if reason == Reason.PREPARE else node.torchrun, end)
    assert found is not None  # an end that is known always has a signature
    if reason != Reason.TORCHRUN:
        return found
    return replace(found, tier=Tier.FOLLOWS if found.signature.name in QUIET else max(found.tier, Tier.SETUP))


def _gone(evidence: Evidence) -> Iterator[Finding]:
    """Nodes that began and never told their end. They were lost within a heartbeat after their last word."""
    last = {node.node: max((e["at"] - node.skew_s for e in node.events), default=0.0) for node in evidence.nodes}
    for node in evidence.nodes:
        if any(True for _ in node.of(Event.STARTED)) and not any(True for _ in node.of(Event.ENDED)):
            word = _clock(last[node.node])
            found = finding(
                "node_gone", node, last[node.node] + node.skew_s + HEARTBEAT_S, f"its last word is of {word}"
            )
            yield replace(found, lines=log_tail.last_lines(log_tail.clean(node.agent), SHOWN_LINES))
