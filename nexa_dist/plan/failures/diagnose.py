"""Diagnosis of an attempt: which rank failed first, and why. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nexa_dist.model import ACTIVE
from nexa_dist.node.protocol import HEARTBEAT_S, Reason
from nexa_dist.plan.failures import collectives, log_tail
from nexa_dist.plan.failures.evidence import Evidence, NodeEvidence, collected, finding, flights
from nexa_dist.plan.failures.known.program import MISTAKE
from nexa_dist.plan.failures.known.signature import Exit, Tier
from nexa_dist.plan.failures.log_reading import Finding, read
from nexa_dist.plan.failures.table import BY_NAME, TABLE

NOBODY = ("deadline", "budget", "stopped_by_user", "disconnected", "superseded")
"""Ends that somebody wanted: no node and no rank is to blame."""
NOT_STARTED = "could not be started"


@dataclass(frozen=True)
class Diagnosis:
    """`first`: (node, rank) that failed first, rank None for the node itself; None when nothing is known of it.
    `others`: what the other ranks died of, one line for each way."""

    first: tuple[str, int | None] | None
    name: str
    words: str
    fix: str
    lines: tuple[bytes, ...] = ()
    others: tuple[str, ...] = ()
    exit: Exit | None = None
    detail: str = ""
    """Detail that the words name: a file, a module."""

    @property
    def blamed(self) -> tuple[str, int | None] | None:
        """`first`, unless somebody wanted the end: then it is only where that was told."""
        return None if self.name in NOBODY else self.first

    @property
    def who(self) -> str:
        if self.blamed is None:
            return ""
        node, rank = self.blamed
        return f"rank {rank} on {node}" if rank is not None else f"node {node}"


RUNNING = Diagnosis(None, "running", "nothing has failed so far", "")
COMPLETED = Diagnosis(None, "completed", "it completed", "")


def judge(evidence: Evidence) -> Diagnosis:
    """Judge what failed first."""
    if evidence.state == "completed":
        return COMPLETED
    findings = collected(evidence)
    best = _first(findings)
    if best is not None and (early := _left_early(evidence, best)):
        findings.append(best := early)
    if best is None:
        return RUNNING if evidence.state in ACTIVE else _without(evidence)
    others = (*_others(evidence, findings, best), *_collectives(evidence, best))
    if evidence.state not in ACTIVE and best.tier == Tier.FOLLOWS and (_told(best) or NOT_STARTED in evidence.cause):
        return replace(_without(evidence), others=others)
    signature = best.signature
    return Diagnosis((best.node, best.rank), signature.name, best.words, best.fix, best.lines, others, best.exit,
                     best.detail)  # fmt: skip


def _first(findings: Sequence[Finding]) -> Finding | None:
    """In the order of events. What waits for another rank or has lost it is first only when there is nothing else."""
    best = min(findings, key=_strength, default=None)
    if best is None or best.tier >= Tier.LATE:
        return best
    itself = [found for found in findings if found.tier <= Tier.SETUP]
    best = min(itself, key=_order)
    if best.tier == Tier.SETUP:  # ranks do not find one that has failed, and may say so before it has ended
        return min((found for found in itself if found.tier == Tier.CAUSE), key=_order, default=best)
    if best.signature.name != "python_exception":
        return best
    gone = [f for f in itself if f.signature.name == "node_gone" and f.node != best.node]
    gone = [
        f for f in gone if f.at - HEARTBEAT_S < best.at
    ]  # nobody saw when it went: it may be what the other one met
    return min(gone, key=_order, default=best)


def _strength(found: Finding) -> tuple[int, float, int]:
    return found.tier, *_order(found)


def _order(found: Finding) -> tuple[float, int]:
    return found.at, -1 if found.rank is None else found.rank


def _left_early(evidence: Evidence, best: Finding) -> Finding | None:
    """A rank that was through while others still needed it. What these lose comes before its own end, as torch closes
    its connections when it ends: then nothing else may explain them."""
    nodes = {node.node: node for node in evidence.nodes}
    through = [r for r in evidence.ranks if r.exit and not r.exit.bad]
    if best.tier < Tier.LATE:
        through = [r for r in through if r.exit and r.exit.at <= best.at and _behind(r.exit, best)]
    if best.rank is None or not through:
        return None
    rank = min(through, key=lambda r: r.exit.at if r.exit else math.inf)
    assert rank.exit is not None
    found = finding("left_early", nodes.get(rank.node, NodeEvidence(rank.node)), rank.exit.at)
    lines = log_tail.last_lines(log_tail.clean(rank.tail), 3)
    return replace(found, rank=rank.rank, node=rank.node, lines=lines, exit=rank.exit)


def _behind(end: Exit | None, best: Finding) -> bool:
    """Tell whether a rank was through before another one failed by itself in a way that this may have brought about."""
    if end is None or best.exit is None or best.signature.name not in ("unknown", "python_exception"):
        return False
    if end.step is None or best.exit.step is None:
        return best.signature.name == "unknown"
    return end.step < best.exit.step and best.fix != MISTAKE


def _without(evidence: Evidence) -> Diagnosis:
    """No node told of a failure: what the supervisor wrote down is all there is."""
    text = evidence.cause
    text = Reason.STOPPED if text.startswith(Reason.STOPPED) else text
    name = next((s.name for s in TABLE if text in s.reasons), "")
    found = read(text.encode(), None) if text else None
    if found:
        return Diagnosis(None, found.signature.name, found.words, found.fix)
    if name:
        return Diagnosis(None, name, BY_NAME[name].words, BY_NAME[name].fix)
    if "budget" in text:
        return Diagnosis(None, "budget", BY_NAME["budget"].words, BY_NAME["budget"].fix)
    if NOT_STARTED in text:
        return Diagnosis(None, "not_started", text, BY_NAME["not_started"].fix)
    return Diagnosis(
        None, "unknown", text or "nothing is known of it: no event and no line came", BY_NAME["unknown"].fix
    )


def _others(evidence: Evidence, findings: Sequence[Finding], best: Finding) -> tuple[str, ...]:
    groups: dict[str, list[Finding]] = {}
    for found in sorted(findings, key=_strength):
        if found is not best and not _told(found) and (found.node, found.rank) != (best.node, best.rank):
            said = found.signature.words == "{detail}"
            brief = replace(found, place="") if said else replace(found, place="", detail="")
            groups.setdefault(brief.words, []).append(found)
    lines = [f"{_span(group)}: {words}" for words, group in groups.items()]
    if best.tier >= Tier.LATE and best.signature.tier >= Tier.LATE:
        heard = {(f.node, f.rank) for f in findings if not _told(f)}
        silent = [r for r in evidence.ranks if (r.node, r.rank) not in heard and not (r.exit and not r.exit.bad)]
        if silent and len(silent) < len(evidence.ranks):
            lines.append(f"{_ranks_in_words([r.rank for r in silent])}: no error of their own; look there first")
    return tuple(lines)


def _collectives(evidence: Evidence, best: Finding) -> tuple[str, ...]:
    if best.signature.name in NOBODY:
        return ()
    return collectives.words(flights(evidence), [rank.rank for rank in evidence.ranks])


def _told(found: Finding) -> bool:
    """Tell whether a rank only did what it was told."""
    return found.signature.name in ("terminated", "killed", "aborted") and found.tier >= Tier.LATE


def _span(group: Sequence[Finding]) -> str:
    ranks = [f.rank for f in group if f.rank is not None]
    nodes = sorted({f.node for f in group if f.rank is None})
    return ", ".join([*([_ranks_in_words(ranks)] if ranks else []), *(f"node {name}" for name in nodes)])


def _ranks_in_words(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 2-7`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
