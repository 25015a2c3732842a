"""Streams of logs and events from the nodes: reconnecting, resumed by byte offset, bounded in memory."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from nexa_dist.run import runner
from nexa_dist.run.mirror import EVENTS, INDEX, PER_MACHINE, Mirror, is_name, marks
from nexa_dist.run.nodes import Link

BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
FRAME_BYTES = 1 << 20
"""No frame is larger; what says so is no agent of ours."""
PULSE_S = 2.0
"""How often a node learns that we are there."""
SILENT_S = 4.0
"""Agents say something every second; after so long their silence is told."""
DEAD_S = 15.0
"""A connection that is silent for so long is given up and made anew, whatever ssh thinks of it."""
PATIENCE_S = 20.0
"""With a silent node where all of its logs are wanted at once."""
LINES_BYTES = 4 << 20
"""Lines that wait for their reader. What comes beyond is not shown; the mirror has it."""
WAITING_BYTES = 8 << 20
"""All that waits; beyond it even events make their sender wait."""


@dataclass(frozen=True)
class Line:
    """One line of a log, as bytes without its newline. `source` is the file's path in the run folder."""

    node: str
    source: str
    text: bytes

    @property
    def rank(self) -> int | None:
        """The rank that wrote it; None for torchrun, prepare and the agent."""
        folder = self.source.split("/")[0]
        return int(folder[5:]) if folder.startswith("rank_") and folder[5:].isdigit() else None


@dataclass(frozen=True)
class AgentEvent:
    """One record of a node's agent.jsonl: `event`, `at`, and what belongs to it."""

    node: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """The agent of `node` is through (or was never there); `status` is its answer."""

    node: str
    status: dict[str, Any]


@dataclass(frozen=True)
class Quiet:
    """No word from `node` for `seconds`: the link is down, or the node is gone."""

    node: str
    seconds: float


@dataclass(frozen=True)
class Note:
    """What people should know about the stream of `node`; nothing is decided by it."""

    node: str
    text: str


Item = Line | AgentEvent | Ended | Quiet | Note


class Items(queue.Queue[Item]):
    """What waits for its reader, counted by bytes: 5 GB of lines must not wait in memory."""

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


def weight(item: Item) -> int:
    """About what it takes in memory."""
    return 1000 + (len(item.text) if isinstance(item, Line) else 0)


class Follower(threading.Thread):
    """Reads one node: its bytes into the mirror, its events and (with `lines`) its lines into a queue that all
    followers share. A slow reader of the queue misses lines, never events, and slows nobody."""

    def __init__(
        self,
        link: Link,
        run_dir: str,
        folder: Path,
        out: Items,
        *,
        once: bool = False,
        lines: bool = True,
        replay: bool = False,
        contact: bool = True,
    ) -> None:
        super().__init__(daemon=True, name=f"follow-{link.node.name}")
        self.link, self.run_dir, self.out = link, run_dir, out
        self.once, self.lines, self.contact = once, lines, contact
        folder.mkdir(parents=True, exist_ok=True)
        seen = {name: mark for name, mark in marks(folder).items() if not (replay and name in PER_MACHINE)}
        self.mirror = Mirror(folder, seen)
        self.leave = threading.Event()
        self.last_word = self.begun = time.monotonic()
        """When the node last said something, and when this connection was asked for."""
        self.reading = False
        """Whether we wait for the node, and not for the reader of the queue."""
        self.missed = 0
        self.stream: runner.Stream | None = None

    def close(self) -> None:
        self.leave.set()
        if self.stream:
            self.stream.end()

    def pulse(self) -> None:
        """Called every PULSE_S from another thread: tells the node of us, and the reader of the node's silence."""
        stream, silent_s = self.stream, time.monotonic() - self.last_word
        if not stream:
            return
        if self.contact:
            stream.send(b"\n")
        if self.reading and silent_s >= SILENT_S:
            with contextlib.suppress(queue.Full):  # the others' pulse must not wait for this reader
                self.out.put_nowait(Quiet(self.link.node.name, silent_s))
            if min(silent_s, time.monotonic() - self.begun) >= DEAD_S:
                stream.end()

    def run(self) -> None:
        tries = 0
        while not self.leave.is_set():
            before, done, self.begun = self.last_word, False, time.monotonic()
            message = {"offsets": self.mirror.seen, "once": self.once, "contact": self.contact}
            argv = self.link.follow_argv(self.run_dir)
            with contextlib.suppress(OSError):  # no process or file can be had: tried again as a dropped link is
                self.stream = self.link.ssh.runner.stream(argv, stdin=json.dumps(message).encode() + b"\n")
                done = not self.leave.is_set() and self._read(self.stream.out)
                self.stream.end()
            if done or self.leave.is_set():
                return
            tries = 0 if self.last_word > before else tries + 1
            self.out.put(Quiet(self.link.node.name, time.monotonic() - self.last_word))
            self.leave.wait(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])

    def _read(self, stream: IO[bytes]) -> bool:
        """Frames until the link drops; true at the agent's last one."""
        name = self.link.node.name
        while not self.leave.is_set():
            got = self._frame(stream)
            if got is None:
                return False
            header, data = got
            self.last_word = time.monotonic()
            if "end" in header:
                for source, rest in self.mirror.flush():
                    self._line(source, rest)
                self._tell_missed()
                self.out.put(Ended(name, header["end"]))
                return True
            if "len" in header:
                self._take(header["src"], header["off"], data)
        return True

    def _frame(self, stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
        """A header and its bytes; None when the link dropped, also in the middle of it, or makes no sense."""
        self.reading = True
        try:
            header = json.loads(stream.readline(FRAME_BYTES) or b"null")
            if not isinstance(header, dict):
                return None
            if "len" not in header:
                return header, b""
            if not (0 <= header["len"] <= FRAME_BYTES and header["off"] >= 0 and is_name(header["src"])):
                return None
            data = stream.read(header["len"])
            return (header, data) if len(data) == header["len"] else None
        except (ValueError, OSError, KeyError, TypeError):
            return None
        finally:
            self.reading = False

    def _take(self, source: str, offset: int, data: bytes) -> None:
        if trouble := self.mirror.store(source, offset, data):
            text = f"its logs cannot be kept here: {trouble}. They stay on the node; nexa logs fetches them later"
            self.out.put(Note(self.link.node.name, text))
        if not self.lines or source.endswith(INDEX):
            return
        if source != EVENTS and self.out.waiting_bytes > LINES_BYTES:
            self.missed += self.mirror.pass_over(source, data)
            return
        take = self._event if source == EVENTS else partial(self._line, source)
        for line in self.mirror.split(source, data):
            take(line)

    def _event(self, text: bytes) -> None:
        with contextlib.suppress(ValueError):  # the tail of a line that an earlier reader began
            record = json.loads(text)
            if isinstance(record, dict) and "event" in record:
                self.out.put(AgentEvent(self.link.node.name, record))

    def _line(self, source: str, text: bytes) -> None:
        if self.out.offer(Line(self.link.node.name, source, text)):
            if self.missed:
                self._tell_missed()
        else:
            self.missed += 1

    def _tell_missed(self) -> None:
        if self.missed:
            self.out.put(Note(self.link.node.name, f"{self.missed} lines came too fast to show; nexa logs has them"))
            self.missed = 0


def follow(
    links: Sequence[Link],
    run_dirs: dict[str, str],
    logs: Path,
    *,
    once: bool = False,
    lines: bool = True,
    replay: bool = False,
    contact: bool = True,
) -> Stream:
    """Starts a follower for every node, which goes on where the mirror `logs` ends. With `replay` events come from
    their beginning. Without `lines` only the mirror is written: the stream has no Line and no AgentEvent. Without
    `contact` the nodes do not take us for their controller, which they may be told not to live without."""
    out = Items()
    followers = [
        Follower(link, run_dirs[name], logs / name, out, once=once, lines=lines, replay=replay, contact=contact)
        for link, name in ((link, link.node.name) for link in links)
    ]
    for follower in followers:
        follower.start()
    return Stream(out, followers)


def fetch(links: Sequence[Link], run_dirs: dict[str, str], logs: Path) -> list[str]:
    """Brings the mirror up to date; answers the nodes that fell silent before they were through."""
    stream = follow(links, run_dirs, logs, once=True, lines=False, contact=False)
    waited, silent = {link.node.name for link in links}, list[str]()
    try:
        while waited:
            item = stream.next()
            if isinstance(item, Ended):
                waited.discard(item.node)
            elif isinstance(item, Quiet) and item.seconds > PATIENCE_S and item.node in waited:
                waited.discard(item.node)
                silent.append(item.node)
    finally:
        stream.close()
    return silent


class Stream:
    """Items of all nodes as they come."""

    def __init__(self, items: Items, followers: Sequence[Follower]) -> None:
        self.items, self.followers = items, followers
        self.closed = threading.Event()
        self.pulse = threading.Thread(target=self._pulse, daemon=True, name="pulse")
        self.pulse.start()

    def _pulse(self) -> None:
        last = time.monotonic()
        while not self.closed.wait(PULSE_S):
            now = time.monotonic()
            asleep, last = now - last > 2 * PULSE_S, now
            if not asleep:  # we were stopped for a while: first hear what the nodes said meanwhile
                for follower in self.followers:
                    follower.pulse()

    def next(self, timeout_s: float = 1.0) -> Item | None:
        """The next item, or None when nothing came in time."""
        try:
            return self.items.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Ends the followers and their ssh."""
        self.closed.set()
        for follower in self.followers:
            follower.close()
        while any(thread.is_alive() for thread in (*self.followers, self.pulse)):
            self.next(0.1)  # one that waits for room in the queue must get it
