"""What a known way to fail is made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Tier(IntEnum):
    """How much a finding explains. A lower one wins over a higher one of another rank, whatever their times."""

    CAUSE = 0
    SETUP = 1
    """The ranks did not find each other; true when nothing failed before that."""
    LATE = 2
    """Somebody did not come in time, or was ended."""
    FOLLOWS = 3
    """Another rank went away."""


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
        """Ended by SIGTERM, or by itself because of one."""
        return self.signal == 15 or self.code == 143


@dataclass(frozen=True)
class Signature:
    """`words` and `fix` are for people; `{name}` in `words` is a group of the pattern, or empty."""

    name: str
    sees: str
    words: str
    fix: str
    logs: tuple[re.Pattern[bytes], ...] = ()
    """Any of them, searched in the last lines of a log (of its last traceback, when it has one)."""
    exits: Callable[[Exit], bool] | None = None
    reasons: tuple[str, ...] = ()
    """Why a node's agent says that it stopped its ranks."""
    tier: Tier = Tier.CAUSE
    anywhere: bool = False
    """Also said long before the end: looked for in all of the log when that ends with a time-out or worse."""


def patterns(*texts: str) -> tuple[re.Pattern[bytes], ...]:
    """Patterns are bytes, literal for the most part, every repeat in them bounded: a log is not to be trusted."""
    return tuple(re.compile(pattern.encode(), re.MULTILINE) for pattern in texts)
