"""Items that come from the nodes of a run, one after the other, and the queue in which they wait: bounded in bytes."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any

LINES_BYTES = 4 << 20
"""Lines that wait for their reader. What comes beyond is not shown; the mirror has it."""
WAITING_BYTES = 8 << 20
"""Bytes of all that waits; beyond them even events make their sender wait."""


@dataclass(frozen=True)
class Line:
    """One line of a log, as bytes without its newline. `source` is the file's path in the run folder."""

    node: str
    source: str
    text: bytes
    passing: bool = False
    """True while the line has not ended: the state of a progress bar by now."""

    @property
    def rank(self) -> int | None:
        """The rank that wrote it; None for torchrun, prepare and the agent. `wire.SOURCE` has seen to the digits."""
        folder, slash, _ = self.source.partition("/")
        return int(folder[5:]) if slash else None


@dataclass(frozen=True)
class AgentEvent:
    """One record of a node's agent.jsonl: `event`, `at`, and what belongs to it."""

    node: str
    record: dict[str, Any]
    size: int = 0
    """Bytes of its line."""


@dataclass(frozen=True)
class Ended:
    """The agent of `node` is through (or was never there); `status` is its answer. Its events are all told; more of
    its logs may come. State `faulty`: it says what makes no sense, and nothing more is heard of it."""

    node: str
    status: dict[str, Any]


@dataclass(frozen=True)
class Through:
    """All logs of `node` are here."""

    node: str


@dataclass(frozen=True)
class Quiet:
    """Silence of `node` for `seconds`: the link is down, or the node is gone. It `hung_up` when its end closed the
    connection while it spoke, and a new one has brought no word."""

    node: str
    seconds: float
    hung_up: bool = False


@dataclass(frozen=True)
class Note:
    """A remark for people about the stream of `node`; nothing is decided by it."""

    node: str
    text: str


Item = Line | AgentEvent | Ended | Through | Quiet | Note


class Items(queue.Queue[Item]):
    """Queue of items, bounded in bytes: 5 GB of lines must not wait in memory."""

    def __init__(self) -> None:
        super().__init__(WAITING_BYTES)

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.waiting_bytes = 0

    def _qsize(self) -> int:
        return self.waiting_bytes

    def _put(self, item: Item) -> None:
        super()._put(item)
        self.waiting_bytes += weight(item)

    def _get(self) -> Item:
        item = super()._get()
        self.waiting_bytes -= weight(item)
        return item

    def offer(self, line: Line) -> bool:
        """Takes the line when there is room; never waits."""
        if self.waiting_bytes + len(line.text) > LINES_BYTES:
            return False
        self.put(line)
        return True


def is_last(item: Item) -> bool:
    """Tell whether this is the last item of its node."""
    return isinstance(item, Through) or (isinstance(item, Ended) and item.status["state"] == "faulty")


def weight(item: Item) -> int:
    """Rough bytes of an item in memory."""
    return 1000 + (len(item.text) if isinstance(item, Line) else 16 * item.size if isinstance(item, AgentEvent) else 0)
