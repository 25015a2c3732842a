"""What a known way to fail is made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

ASKING = (1, 2, 15)


class Tier(IntEnum):
    """How much a finding explains. Of CAUSE and OWN the earlier comes first; SETUP is before what is later and OWN, and
    gives way to any CAUSE; LATE and FOLLOWS outweigh nothing above them, whatever their times."""

    CAUSE = 0
    """It failed by itself, and of what is known."""
    OWN = 1
    """It failed by itself, of something that is not in the table, or without a word."""
    SETUP = 2
    """The ranks did not find each other; true when nothing failed before that."""
    LATE = 3
    """It waited in vain for another one."""
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
class Signature:
    """`words` and `fix` are for people; `{name}` in `words` is a group of the pattern, or empty."""

    name: str
    sees: str
    words: str
    fix: str
    logs: tuple[re.Pattern[bytes], ...] = ()
    """Any of them, searched in the last lines of a log (of its last traceback, when it has one)."""
    near: tuple[re.Pattern[bytes], ...] = ()
    """One of these has to be there too: without it the same words mean something else."""
    unless: tuple[re.Pattern[bytes], ...] = ()
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
