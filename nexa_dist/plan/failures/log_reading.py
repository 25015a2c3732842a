"""Reading of a log's end together with its process's end. Pure."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nexa_dist.plan.failures import log_tail
from nexa_dist.plan.failures.known.program import NOT_KNOWN
from nexa_dist.plan.failures.known.signature import Exit, Phrase, Signature, Tier
from nexa_dist.plan.failures.table import BY_NAME, TABLE

CRASHES = (4, 6, 7, 8, 11)
ENDED_BY_SIGNAL = (4, 7, 8, 9, 11)
"""Signals whose cause is not in the log of the rank that they ended."""
SHOWN_LINES = 12


@dataclass(frozen=True)
class Finding:
    """Finding: what one rank (or a node, with rank None) died of, as far as its own evidence says. `at` is the
    controller's time, infinite when it is not known."""

    signature: Signature
    node: str
    rank: int | None
    at: float
    tier: Tier
    detail: str = ""
    place: str = ""
    lines: tuple[bytes, ...] = ()
    exit: Exit | None = None
    remedy: str = ""
    """Instead of the one in the table."""

    @property
    def fix(self) -> str:
        return self.remedy or self.signature.fix

    @property
    def words(self) -> str:
        made = self.signature.words.replace(" ({detail} ms)", "") if not self.detail else self.signature.words
        text = made.format(detail=self.detail.strip()).rstrip(" :")
        return f"{text}, at {self.place}" if self.place else text


def read(tail: bytes, end: Exit | None) -> Finding | None:
    """The first signature that fits a log and the end of its process (None: not known)."""
    text = log_tail.clean(tail)
    trace = log_tail.last_traceback(text)
    region = trace or text[-log_tail.REGION_BYTES :]
    shown = log_tail.last_lines(region, SHOWN_LINES)
    meant = _of_a_shell(end)
    if meant is None or meant.signal not in ENDED_BY_SIGNAL:
        said = _said(text, trace, region, meant)
        if said:
            return replace(said, lines=shown, exit=end)
    if meant is None:
        return None
    if meant.code and not trace and (number := log_tail.crash(text)):
        meant = replace(meant, code=0, signal=number)
    known = next(s for s in TABLE if s.exits and s.exits(meant))
    return replace(_found(known, known.tier, _of_exit(known, meant, text), ""), lines=shown, exit=end)


def _found(signature: Signature, tier: Tier, detail: str, place: str, remedy: str = "") -> Finding:
    return Finding(signature, "", None, math.inf, tier, detail, place, remedy=remedy)


def _of_a_shell(end: Exit | None) -> Exit | None:
    """A shell's code for a child that a signal ended, as that signal."""
    number = end.code - 128 if end else 0
    return replace(end, code=0, signal=number) if end and number in (*CRASHES, 9) else end


def _said(text: bytes, trace: bytes, region: bytes, end: Exit | None) -> Finding | None:
    """Find in a log what its process ended of; None when the log does not tell."""
    words, later = log_tail.message(region)
    if trace and log_tail.went_on(later):
        trace, region, words = b"", later, b""
    ranks, inner = log_tail.of_ranks(trace)
    if ranks:
        return _of_ranks(ranks, inner, end)
    known = _search([s for s in TABLE if not s.raised], region, end, checked=bool(trace))
    if (
        known
        and known[0].child
        and known[0].tier == Tier.OWN
        and (told := _of_the_child(text[: text.find(trace)], end))
    ):
        trace, known = told
    frame = log_tail.place(trace) if trace else None
    if known and (known[0].child or known[0].tier >= Tier.LATE):
        known = _search([s for s in TABLE if s.anywhere], text, end, checked=True) or known
    own = str(frame) if frame and frame.own else ""
    if known and known[0].name != "aborted":
        return _found(known[0], known[0].tier, known[1], own)
    mistake = log_tail.mistake(words)
    if words and not mistake and (lost := _search([s for s in TABLE if s.raised], words, end, checked=True)):
        return _found(lost[0], lost[0].tier, log_tail.raised(trace) if trace else known[1] if known else "", own)
    if known:
        return _found(known[0], known[0].tier, known[1], own)
    if not trace or not _ended_of_it(later, end):
        return None
    signature = BY_NAME["python_exception"]
    tier = Tier.LATE if not mistake and log_tail.in_collective(trace) else signature.tier
    remedy = "" if mistake else NOT_KNOWN
    return _found(signature, tier, log_tail.raised(trace), str(frame) if frame else "", remedy)


def _of_the_child(before: bytes, end: Exit | None) -> tuple[bytes, tuple[Signature, str]] | None:
    """A cause in the traceback before that of a parent which only tells that its child failed (not that a signal ended
    it): that of the child, which wrote to the same log."""
    trace = log_tail.last_traceback(before)
    if not trace or log_tail.went_on(log_tail.message(trace)[1]):
        return None
    known = _search([s for s in TABLE if not (s.raised or s.child)], trace, end, checked=True)
    return (trace, known) if known and known[0].tier == Tier.CAUSE else None


def _of_ranks(ranks: str, inner: bytes, end: Exit | None) -> Finding:
    """Failure of ranks that a rank was told of, itself perhaps among them: evidence.py finds whose it is."""
    said = _said(inner, inner, inner, end)
    signature = BY_NAME["distributed_checkpoint"]
    remedy = said.fix if said else NOT_KNOWN
    detail = f"{ranks}: {log_tail.raised(inner)}"
    return _found(signature, signature.tier, detail, said.place if said else "", f"{signature.fix}; {remedy}")


def _ended_of_it(later: bytes, end: Exit | None) -> bool:
    """Tell whether an exception was what ended a process: with a code of its own only when nothing was said after
    it."""
    return end is None or end.code == 1 or end.signal == 6 or not later.strip()


def _of_exit(signature: Signature, end: Exit, text: bytes) -> str:
    name = signal.Signals(end.signal).name if end.signal in set(signal.Signals) else ""
    if signature.name == "terminated":
        return name or signal.Signals(end.code - 128).name
    if signature.name == "unknown":
        return f"signal {end.signal}{f' ({name})' if name else ''}" if end.signal else f"exit code {end.code}"
    frames = log_tail.stack(text) if end.signal in (*CRASHES, 9) else ()
    return f"at {log_tail.standing(frames)}" if frames else ""


def _search(
    table: Sequence[Signature], text: bytes, end: Exit | None, *, checked: bool = False
) -> tuple[Signature, str] | None:
    """The first signature with words that are in the text and were not handled there (unless that was `checked`
    before), and its detail. A phrase may be common: where nothing was raised it counts in the last lines alone."""
    told = log_tail.said(text) if checked else text
    short = told if checked else b"\n".join(log_tail.last_lines(text, SHOWN_LINES))
    for signature in table:
        if signature.exits and not (end and signature.exits(end)):
            continue
        if signature.near and not any(pattern.search(text) for pattern in signature.near):
            continue
        if any(pattern.search(text) for pattern in signature.unless):
            continue
        for pattern in signature.logs:
            place = short if isinstance(pattern, Phrase) else told
            match = pattern.search(place)
            if match and (checked or not log_tail.handled(place, match.start())):
                return signature, (match.groupdict().get("detail") or b"").decode(errors="replace")
    return None
