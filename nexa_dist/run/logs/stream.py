"""Streams of logs and events from the nodes: reconnecting, resumed by byte offset, bounded in memory."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from nexa_dist import wire
from nexa_dist.node.protocol import AT_WORK
from nexa_dist.run import runner
from nexa_dist.run.logs.items import LINES_BYTES, AgentEvent, Ended, Item, Items, Line, Note, Quiet, Through
from nexa_dist.run.logs.mirror import EVENTS, INDEX, PER_MACHINE, Mirror, marks
from nexa_dist.run.ssh.connections import Link
from nexa_dist.shape import Strange

BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
FAULTS = 5
"""Connections with malformed frames before the node is given up as faulty."""
PULSE_S = 2.0
"""Interval of the keep-alive to each node."""
SILENT_S = 4.0
"""Silence of an agent, which speaks every second, before a Quiet item."""
HUNG_UP_S = 2.5
"""An agent was speaking when it was heard so lately: who closes the connection then is its end, and no time-out."""
DEAD_S = 15.0
"""Silence before a connection is closed and made anew, whatever ssh thinks of it."""
BEGIN_S = 120.0
"""Seconds for which a node is asked again for an attempt that it has not begun."""
ASK_S = 1.0
"""Pause before the node is asked again."""
PATIENCE_S = 20.0
"""Seconds with a silent node where all of its logs are wanted at once."""
LINES_A_SECOND = 2000
"""Of one node: more than anybody reads, and the rest must not wait for a terminal. The mirror has all."""
STATE_EVERY_S = 1.0
"""A progress bar is shown so often."""
FETCH_S = 600.0
"""Seconds for logs that somebody asked for and waits for."""


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
        attempt: int | None = None,
    ) -> None:
        super().__init__(daemon=True, name=f"follow-{link.node.name}")
        self.link, self.run_dir, self.out = link, run_dir, out
        self.once, self.lines, self.contact = once, lines, contact
        self.attempt, self.asked, self.early = attempt, 0, False
        """The one to wait for; how often this node said that it has not begun it, and whether it said so last."""
        folder.mkdir(parents=True, exist_ok=True)
        seen = {name: mark for name, mark in marks(folder).items() if not (replay and name in PER_MACHINE)}
        self.mirror = Mirror(folder, seen)
        self.leave = threading.Event()
        self.last_word = self.begun = time.monotonic()
        """When the node last said something, and when this connection was asked for."""
        self.reading = False
        """Whether we wait for the node, and not for the reader of the queue."""
        self.hung_up = False
        """Whether its end closed the last connection that brought a word."""
        self.missed = self.odd = self.faults = 0
        """Lines that were not shown, events and connections that made no sense."""
        self.ended = self.through = False
        self.log_bytes: int | None = None
        """Bytes of all logs on the node, as it said at its end."""
        self.second, self.shown = 0.0, 0
        """Lines that were shown since this second began."""
        self.told_state: dict[str, float] = {}
        self.stream: runner.Stream | None = None

    @property
    def behind(self) -> int:
        """Bytes of logs that are still on the node, as far as it told."""
        return max(0, (self.log_bytes or 0) - sum(self.mirror.seen.values()))

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
                self.out.put_nowait(Quiet(self.link.node.name, silent_s, self.hung_up))
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
                try:
                    done = not self.leave.is_set() and self._read(self.stream.out)
                except Strange as error:
                    done = self._fault(error)
                self.stream.end()
            if done or self.leave.is_set():
                return
            if self.early and self.last_word > before:
                self.leave.wait(ASK_S)
                continue
            tries, silent_s = 0 if self.last_word > before else tries + 1, time.monotonic() - self.last_word
            self.hung_up = silent_s < HUNG_UP_S if self.last_word > before else self.hung_up
            self.out.put(Quiet(self.link.node.name, silent_s, self.hung_up))
            self.leave.wait(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])

    def _read(self, stream: IO[bytes]) -> bool:
        """Frames until the link drops; true at the agent's last one. Raises Strange."""
        while not self.leave.is_set():
            got = self._frame(stream)
            if got is None:
                return False
            header, data = got
            self.last_word, self.hung_up = time.monotonic(), False
            if "end" in header and self._is_early(header["end"]):
                self.asked, self.early = self.asked + 1, True
                return False
            if header.get("state") in AT_WORK:
                self.early = False
            if "end" in header:
                self.log_bytes = header.get("log_bytes", 0)
                self._end(header["end"])
            if "through" in header:
                for source, rest in self.mirror.flush():
                    self._line(source, rest)
                self._tell_missed()
                self.through = True
                self.out.put(Through(self.link.node.name))
                return True
            if "len" in header:
                self._take(header["src"], header["off"], data)
        return True

    def _end(self, status: dict[str, Any]) -> None:
        if not self.ended:
            self.ended = True
            if self.odd > 1:
                self._note(f"{self.odd} lines of its {EVENTS} made no sense and were passed over; all are kept")
            self.out.put(Ended(self.link.node.name, status))

    def _fault(self, error: Strange) -> bool:
        """The node said what no agent says. True when nothing more is to be expected of it."""
        self.faults += 1
        if self.faults == 1:
            self._note(f"what it sends makes no sense, its link is made anew: {error}")
        if self.faults >= FAULTS:
            self._end({"state": "faulty", "reason": f"what it sends makes no sense: {error}"})
        return self.faults >= FAULTS

    def _note(self, text: str) -> None:
        self.out.put(Note(self.link.node.name, text))

    def _is_early(self, status: dict[str, Any]) -> bool:
        """Whether a node is through with what came before the attempt, and begins that yet."""
        if self.attempt is None or self.asked >= BEGIN_S / ASK_S:
            return False
        return bool(status["state"] == "absent" or status.get("attempt", self.attempt) < self.attempt)

    def _frame(self, stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
        """A header and its bytes; None when the link dropped, also in the middle of it. Raises Strange."""
        self.reading = True
        try:
            line = stream.readline(wire.FRAME_BYTES + 1)
            if not line.endswith(b"\n") and len(line) <= wire.FRAME_BYTES:
                return None
            header = wire.frame(line)
            if "len" not in header:
                return header, b""
            self._expect(header["src"], header["off"])
            data = stream.read(header["len"])
            return (header, data) if len(data) == header["len"] else None
        except (ValueError, OSError) as error:  # `close` was here meanwhile
            if isinstance(error, Strange):
                raise
            return None
        finally:
            self.reading = False

    def _expect(self, source: str, offset: int) -> None:
        """Bytes come in order, and of no more files than a run has."""
        seen = self.mirror.seen
        if offset != seen.get(source, 0):
            raise Strange(f"{source} goes on at {offset}, not at {seen.get(source, 0)}")
        if source not in seen and len(seen) >= wire.MOST_LOGS:
            raise Strange(f"it has more than {wire.MOST_LOGS} logs")

    def _take(self, source: str, offset: int, data: bytes) -> None:
        if trouble := self.mirror.store(source, offset, data):
            self._note(f"its logs cannot be kept here: {trouble}. They stay on the node; nexa logs fetches them later")
        if not self.lines or source.endswith(INDEX):
            return
        if source != EVENTS and not self._room():
            self.missed += self.mirror.pass_over(source, data)
            return
        take = self._event if source == EVENTS else partial(self._line, source)
        for line in self.mirror.split(source, data):
            take(line)
        if source != EVENTS and (state := self.mirror.state(source)):
            self._state(source, state)

    def _room(self) -> bool:
        """Whether lines of logs are shown now."""
        now = time.monotonic()
        if now - self.second >= 1:
            self.second, self.shown = now, 0
        return self.shown < LINES_A_SECOND and self.out.waiting_bytes <= LINES_BYTES

    def _state(self, source: str, text: bytes) -> None:
        now = time.monotonic()
        if now - self.told_state.get(source, -STATE_EVERY_S) >= STATE_EVERY_S:
            self.told_state[source] = now
            self.out.offer(Line(self.link.node.name, source, text, passing=True))

    def _event(self, text: bytes) -> None:
        try:
            self.out.put(AgentEvent(self.link.node.name, wire.event(text), len(text)))
        except Strange as error:
            if not text.strip():
                return
            self.odd += 1
            if self.odd == 1:
                where = self.mirror.folder / EVENTS
                self._note(f"a line of its {EVENTS} makes no sense and is passed over: {error} (all are in {where})")

    def _line(self, source: str, text: bytes) -> None:
        self.shown += 1
        if self.out.offer(Line(self.link.node.name, source, text)):
            if self.missed:
                self._tell_missed()
        else:
            self.missed += 1

    def _tell_missed(self) -> None:
        if self.missed:
            self._note(f"{self.missed} lines came too fast to show; nexa logs has them")
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
    attempt: int | None = None,
) -> Stream:
    """Starts a follower for every node, which goes on where the mirror `logs` ends. With `replay` events come from
    their beginning. Without `lines` only the mirror is written: the stream has no Line and no AgentEvent. Without
    `contact` the nodes do not take us for their controller, which they may be told not to live without. A node that has
    not begun `attempt` is asked again for a while."""
    out = Items()
    followers = [
        Follower(
            *(link, run_dirs[link.node.name], logs / link.node.name, out),
            once=once,
            lines=lines,
            replay=replay,
            contact=contact,
            attempt=attempt,
        )
        for link in links
    ]
    for follower in followers:
        follower.start()
    return Stream(out, followers)


def fetch(links: Sequence[Link], run_dirs: dict[str, str], logs: Path, limit_s: float = FETCH_S) -> dict[str, str]:
    """Brings the mirror up to date; answers the nodes of which not all came, and why."""
    stream = follow(links, run_dirs, logs, once=True, lines=False, contact=False)
    waited, missing = {link.node.name for link in links}, dict[str, str]()
    until = time.monotonic() + limit_s
    try:
        while waited and time.monotonic() < until and (stream.alive or not stream.items.empty()):
            item = stream.next()
            if isinstance(item, Through):
                waited.discard(item.node)
            elif isinstance(item, Ended) and item.status["state"] == "faulty" and item.node in waited:
                waited.discard(item.node)
                missing[item.node] = item.status["reason"]
            elif isinstance(item, Quiet) and item.seconds > PATIENCE_S and item.node in waited:
                waited.discard(item.node)
                missing[item.node] = f"no word for {item.seconds:.0f} s"
    finally:
        stream.close()
    return missing | dict.fromkeys(waited, f"not all of it came within {limit_s:.0f} s")


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

    def early(self) -> set[str]:
        """The nodes that have not begun the attempt."""
        return {follower.link.node.name for follower in self.followers if follower.early}

    def speaking(self) -> list[str]:
        """The nodes that we hear just now."""
        now = time.monotonic()
        return [f.link.node.name for f in self.followers if now - f.last_word < PULSE_S and f.last_word > f.begun]

    def next(self, timeout_s: float = 1.0) -> Item | None:
        """The next item, or None when nothing came in time."""
        try:
            return self.items.get(timeout=timeout_s) if timeout_s else self.items.get_nowait()
        except queue.Empty:
            return None

    def rest(self, limit_s: float) -> Iterator[Item | None]:
        """Items until all logs are here, or the time is up; then `behind` tells what is not."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until and self.alive:
            yield self.next(0.1)
        while (item := self.next(0)) is not None and time.monotonic() < until + 1:
            yield item

    @property
    def alive(self) -> bool:
        """Whether more may come."""
        return any(follower.is_alive() for follower in self.followers)

    def behind(self) -> dict[str, int]:
        """Bytes of logs that are still on the nodes, by node; of 0 nobody knows how many."""
        return {f.link.node.name: f.behind for f in self.followers if not f.through}

    def close(self) -> None:
        """Ends the followers and their ssh."""
        self.closed.set()
        for follower in self.followers:
            follower.close()
        while any(thread.is_alive() for thread in (*self.followers, self.pulse)):
            self.next(0.1)  # one that waits for room in the queue must get it
