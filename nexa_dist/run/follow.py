"""Streams of logs and events from the nodes: reconnecting, resumed by byte offset, bounded in memory."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nexa_dist.run import runner
from nexa_dist.run.nodes import Link

MAX_LINE_BYTES = 64 * 1024
EVENTS = "agent.jsonl"
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)


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


Item = Line | AgentEvent | Ended | Quiet


Marks = dict[str, int]
"""By log file: the byte offset behind its last whole line."""


def marks(folder: Path) -> Marks:
    """Where to go on reading the files of a mirror: behind the last newline, so that a line comes whole."""
    found: Marks = {}
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - MAX_LINE_BYTES)
            file.seek(start)
            tail = file.read()
        cut = tail.rfind(b"\n") + 1
        found[str(path.relative_to(folder))] = start + (cut or (len(tail) if start else 0))
    return found


@dataclass
class Mirror:
    """The copy of one node's logs on the controller, and how far this reader has come. Bytes are written at
    their own offsets, so two readers of the same run do no harm."""

    folder: Path
    seen: Marks
    partial: dict[str, bytes] = field(default_factory=dict)

    def write(self, source: str, offset: int, data: bytes) -> list[bytes]:
        """Stores the bytes and returns the lines that they complete. A line over 64 KiB comes in pieces."""
        self.seen[source] = offset + len(data)
        path = self.folder / source
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)
        lines = (self.partial.get(source, b"") + data).split(b"\n")
        rest = lines.pop()
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        self.partial[source] = rest
        return lines

    def flush(self) -> list[tuple[str, bytes]]:
        """What is left of files that do not end in a newline."""
        left = [(source, text) for source, text in self.partial.items() if text]
        self.partial.clear()
        return left


class Follower(threading.Thread):
    """Reads one node into a queue that all followers share. A full queue slows the reader, not the run."""

    def __init__(
        self,
        link: Link,
        run_dir: str,
        folder: Path,
        out: queue.Queue[Item],
        *,
        once: bool = False,
        seen: Marks | None = None,
    ) -> None:
        super().__init__(daemon=True, name=f"follow-{link.node.name}")
        self.link, self.run_dir, self.out, self.once = link, run_dir, out, once
        folder.mkdir(parents=True, exist_ok=True)
        self.mirror = Mirror(folder, marks(folder) if seen is None else seen)
        self.leave = threading.Event()
        self.last_word = time.monotonic()
        self.stream: runner.Stream | None = None

    def close(self) -> None:
        self.leave.set()
        if self.stream:
            self.stream.end()

    def run(self) -> None:
        tries = 0
        while not self.leave.is_set():
            before = self.last_word
            message = {"offsets": self.mirror.seen, "once": self.once}
            argv = self.link.follow_argv(self.run_dir)
            self.stream = self.link.ssh.runner.stream(argv, stdin=json.dumps(message).encode() + b"\n")
            done = self._read(self.stream.out)
            self.stream.end()
            if done:
                return
            tries = 0 if self.last_word > before else tries + 1
            self.out.put(Quiet(self.link.node.name, time.monotonic() - self.last_word))
            self.leave.wait(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])

    def _read(self, stream: IO[bytes]) -> bool:
        """Frames until the link drops; true at the agent's last one."""
        name = self.link.node.name
        while not self.leave.is_set():
            try:
                header = json.loads(stream.readline(1 << 20) or b"null")
                if header is None:
                    return False
                data = stream.read(header["len"]) if "len" in header else b""
            except (ValueError, OSError):
                return False
            self.last_word = time.monotonic()
            if "end" in header:
                for source, text in self.mirror.flush():
                    self.out.put(Line(name, source, text))
                self.out.put(Ended(name, header["end"]))
                return True
            if "len" in header:
                if len(data) < header["len"]:
                    return False
                self._deliver(header["src"], self.mirror.write(header["src"], header["off"], data))
        return True

    def _deliver(self, source: str, lines: Sequence[bytes]) -> None:
        for text in lines:
            if source == EVENTS:
                with contextlib.suppress(ValueError):  # the tail of a line that an earlier reader began
                    self.out.put(AgentEvent(self.link.node.name, json.loads(text)))
            else:
                self.out.put(Line(self.link.node.name, source, text))


def follow(
    links: Sequence[Link],
    run_dirs: dict[str, str],
    logs: Path,
    *,
    once: bool = False,
    seen: dict[str, Marks] | None = None,
) -> Stream:
    """Starts a follower for every node. `seen` is, by node, from where on (default: what `logs` holds)."""
    out: queue.Queue[Item] = queue.Queue(maxsize=2000)
    followers = [
        Follower(link, run_dirs[name], logs / name, out, once=once, seen=None if seen is None else seen.get(name, {}))
        for link, name in ((link, link.node.name) for link in links)
    ]
    for follower in followers:
        follower.start()
    return Stream(out, followers)


@dataclass
class Stream:
    """Items of all nodes as they come."""

    queue: queue.Queue[Item]
    followers: Sequence[Follower]

    def next(self, timeout_s: float = 1.0) -> Item | None:
        """The next item, or None when nothing came in time."""
        try:
            return self.queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Ends the followers and their ssh."""
        for follower in self.followers:
            follower.close()
        while any(follower.is_alive() for follower in self.followers):
            self.next(0.1)  # one that waits for room in the queue must get it
