"""Signature: the parts of a known way to fail."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

ASKING = (1, 2, 15)


class Tier(IntEnum):
    """Tier of a finding: how much it explains. Of CAUSE and OWN the earlier comes first; SETUP is before what is later
    and OWN, and gives way to any CAUSE; LATE and FOLLOWS outweigh nothing above them, whatever their times."""

    CAUSE = 0
    """Failed by itself, of a known cause."""
    OWN = 1
    """Failed by itself, of something that is not in the table, or without a word."""
    SETUP = 2
    """The ranks did not find each other; true when nothing failed before that."""
    LATE = 3
    """Waited in vain for another rank."""
    FOLLOWS = 4
    """Another rank went away, or it did what it was told."""


@dataclass(frozen=True)
class Exit:
    """The end of one rank: its exit code, or the signal that ended it."""

    at: float
    code: int
    signal: int
    step: int | None = None
    oom: bool = False
    """The kernel ended it for want of memory."""

    @property
    def bad(self) -> bool:
        return bool(self.code or self.signal)

    @property
    def asked(self) -> bool:
        """Ended by SIGHUP, SIGINT or SIGTERM, or by itself because of one."""
        return self.signal in ASKING or self.code - 128 in ASKING


@dataclass(frozen=True)
class Found:
    """Match: as much of `re.Match` as is used."""

    at: int
    detail: bytes

    def start(self) -> int:
        return self.at

    def groupdict(self) -> dict[str, bytes]:
        return {"detail": self.detail}


@dataclass(frozen=True)
class Phrase:
    """Literal pieces that stand on one line, in their order. Linear in the text whatever it is: in a line the first
    place of each piece is as good as any other, so nothing is tried twice."""

    pieces: tuple[bytes, ...]
    shown: int = 0
    """The piece before which the detail stands (as many as there are: behind the last); 0 for none."""
    first: bool = False
    """The line begins with it."""

    def search(self, text: bytes) -> Found | None:
        at = text.find(self.pieces[0])
        while at >= 0:
            end = text.find(b"\n", at)
            end = len(text) if end < 0 else end
            if not self.first or at == 0 or text[at - 1] == 10:
                places = self._places(text, at, end)
                if len(places) > len(self.pieces):
                    return Found(at, self._detail(text, places))
            at = text.find(self.pieces[0], end)
        return None

    def _places(self, text: bytes, at: int, end: int) -> list[int]:
        """Places at which each piece begins in a line, and the line's end; fewer when one is not there."""
        places: list[int] = []
        for piece in self.pieces:
            at = text.find(piece, at, end)
            if at < 0:
                return places
            places.append(at)
            at += len(piece)
        return [*places, end]

    def _detail(self, text: bytes, places: list[int]) -> bytes:
        if not self.shown:
            return b""
        start = places[self.shown - 1] + len(self.pieces[self.shown - 1])
        return text[start : places[self.shown]][:DETAIL_BYTES]


Words = re.Pattern[bytes] | Phrase
DETAIL_BYTES = 160
GAP, DETAIL = "…", "{detail}"


@dataclass(frozen=True)
class Signature:
    """`words` and `fix` are for people; `{name}` in `words` is a group of the pattern, or empty."""

    name: str
    sees: str
    words: str
    fix: str
    logs: tuple[Words, ...] = ()
    """Any of them, searched in what a log's last traceback says, without the user's own source; of a log without one in
    its last lines."""
    near: tuple[Words, ...] = ()
    """One of these has to be there too, or in the frames: without it the same words mean something else."""
    unless: tuple[Words, ...] = ()
    """With one of these the same words mean something else."""
    child: bool = False
    """Tells only that a process which the program started is gone: why may be said further up."""
    raised: bool = False
    """Searched in the words of the exception alone, and only when nothing else in the table fits."""
    exits: Callable[[Exit], bool] | None = None
    reasons: tuple[str, ...] = ()
    """Why a node's agent says that it stopped its ranks."""
    tier: Tier = Tier.CAUSE
    anywhere: bool = False
    """Also said long before the end: looked for in all of the log when that ends with a time-out or worse, or with the
    loss of a process that the program started."""


def patterns(*texts: str) -> tuple[re.Pattern[bytes], ...]:
    """Patterns are bytes, literal for the most part, every repeat in them bounded: a log is not to be trusted."""
    return tuple(re.compile(pattern.encode(), re.MULTILINE) for pattern in texts)


def says(*texts: str) -> tuple[Phrase, ...]:
    """Phrases: what a program prints, word for word, with `…` for any text in between, `{detail}` for one that is
    shown, and `^` before a line's first word. They need no escapes, and none of them is slow."""
    return tuple(_phrase(text) for text in texts)


def _phrase(text: str) -> Phrase:
    parts = re.split(f"({GAP}|{re.escape(DETAIL)})", text.removeprefix("^"))
    if not text or not all(parts[:-1]) or parts.count(DETAIL) > 1:
        raise ValueError(f"a phrase begins with words, has words between its gaps, and shows one of them: {text!r}")
    pieces = tuple(part.encode() for part in parts[::2] if part)
    return Phrase(pieces, (parts.index(DETAIL) + 1) // 2 if DETAIL in parts else 0, text.startswith("^"))


def row(
    name: str, words: str, fix: str, logs: tuple[Phrase, ...], *, near: tuple[Phrase, ...] = (), tier: Tier = Tier.CAUSE
) -> Signature:
    """A signature by phrases alone, which are also what the page shows."""
    sees = "; ".join(GAP.join(piece.decode() for piece in phrase.pieces) for phrase in logs)
    return Signature(name, sees, words, fix, logs, near, tier=tier)
