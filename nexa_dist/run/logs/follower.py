"""Follower of one node's logs and events: reconnecting, resumed by byte offset, bounded in memory."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from nexa_dist import wire
from nexa_dist.node.protocol import AT_WORK
from nexa_dist.run import runner
from nexa_dist.run.logs.items import LINES_BYTES, AgentEvent, Ended, Items, Line, Note, Quiet, Through
from nexa_dist.run.logs.mirror import EVENTS, INDEX, PER_MACHINE, Mirror, marks
from nexa_dist.run.ssh.connections import Link
from nexa_dist.shape import Strange

BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
FAULTS = 5
"""Connections with malformed frames before the node is given up as faulty."""
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
LINES_A_SECOND = 2000
"""Lines of one node that are shown a second: more than anybody reads, and the rest must not wait for a terminal. The
mirror has all."""
STATE_EVERY_S = 1.0
"""A progress bar is shown so often."""


@dataclass(frozen=True)
class How:
    """What is wanted of the nodes that are followed."""

    once: bool = False
    """Only what is there already."""
    lines: bool = True
    """Else only the mirror is written: the stream has no Line and no AgentEvent."""
    replay: bool = False
    """Events come from their beginning."""
    contact: bool = True
    """Else the nodes do not take us for their controller, which they may be told not to live without."""
    attempt: int | None = None
    """A node that has not begun it is asked again for a while."""


ALL = How()


class Follower(threading.Thread):
    """Reads one node: its bytes into the mirror, its events and its lines into a queue that all followers share. A slow
    reader of the queue misses lines, never events, and slows nobody."""

    def __init__(self, link: Link, run_dir: str, folder: Path, out: Items, how: How = ALL) -> None:
        super().__init__(daemon=True, name=f"follow-{link.node.name}")
        self.link, self.run_dir, self.out, self.how = link, run_dir, out, how
        self.asked, self.early = 0, False
        """How often this node said that it has not begun the attempt, and whether it said so last."""
        folder.mkdir(parents=True, exist_ok=True)
        seen = {name: mark for name, mark in marks(folder).items() if not (how.replay and name in PER_MACHINE)}
        self.mirror = Mirror(folder, seen)
        self.leave = threading.Event()
        self.last_word = self.begun = time.monotonic()
        """Times at which the node last said something, and at which this connection was asked for."""
        self.reading = False
        """True while we wait for the node, and not for the reader of the queue."""
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
        if self.how.contact:
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
            message = {"offsets": self.mirror.seen, "once": self.how.once, "contact": self.how.contact}
            with contextlib.suppress(OSError):  # no process or file can be had: tried again as a dropped link is
                self.stream = self.link.stream("follow", self.run_dir, message=message)
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
        """Tell whether a node is through with what came before the attempt, which it has yet to begin."""
        wanted = self.how.attempt
        if wanted is None or self.asked >= BEGIN_S / ASK_S:
            return False
        return bool(status["state"] == "absent" or status.get("attempt", wanted) < wanted)

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
        if not self.how.lines or source.endswith(INDEX):
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
        """Tell whether lines of logs are shown now."""
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
