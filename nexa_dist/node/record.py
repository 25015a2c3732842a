"""State of an attempt from agent.jsonl, read once and then only what is added."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from .oslib import alive, newest_attempt, read_at, read_json
from .protocol import AT_WORK, ENDINGS, EVENTS, FREQUENT, HEARTBEAT_S, UNSAID, VERSION, Event

BLOCK_BYTES = 1 << 20
LINE_BYTES = 1 << 16
EXITS = 4096
LATEST = 4.2e9
SILENT_S = 6 * HEARTBEAT_S
"""Silence from which an agent on another machine is gone; clocks may differ by some of it."""


class Record:
    """One attempt as its events tell it. `read` takes in what is new."""

    def __init__(self, run_dir: str, attempt: int | None = None) -> None:
        """The newest attempt, also when a newer one begins meanwhile; or the one that is given."""
        self.path, self.run_dir, self.fixed = os.path.join(run_dir, "agent.jsonl"), run_dir, attempt
        self._forget(0)

    def _forget(self, attempt: int) -> None:
        self.attempt, self.offset = attempt, 0
        self.clear()

    def clear(self) -> None:
        self.version = VERSION
        """Version of the agent that wrote the file."""
        self.names: set[str] = set()
        self.pids: dict[int, int] = {}
        """Rank → its process, as rank_start names it."""
        self.exits: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None
        self.notice: dict[str, Any] | None = None
        self.last: bytes = b""
        self.last_progress: bytes = b""
        self.ours = False
        """True while the lines read belong to this attempt: behind its `started`, and before that of another one."""

    def read(self) -> Record:
        """Raises nothing: a file that is not there is empty."""
        attempt = newest_attempt(self.run_dir) if self.fixed is None else self.fixed
        if attempt != self.attempt:
            self._forget(attempt)
        while data := read_at(self.path, self.offset, BLOCK_BYTES):
            whole = data[: data.rfind(b"\n") + 1]
            if not whole and len(data) < BLOCK_BYTES:
                break
            self.offset += len(whole or data)  # a line without an end is none of ours
            for line in whole.splitlines():
                self._take(line)
        return self

    def _take(self, line: bytes) -> None:
        line = line[max(line.rfind(b'{"event": '), 0) :]  # behind one that a full disk cut off
        if line.startswith(FREQUENT):  # thousands an hour: only the last of them is ever looked at
            if self.ours:
                self.last = line
                self.last_progress = line if line.startswith(FREQUENT[1]) else self.last_progress
            return
        found = parsed(line)
        if found is None:
            return
        name = found["event"]
        if name == Event.STARTED:
            self.clear()
            self.ours = found.get("attempt") == self.attempt
            self.version = found["version"] if whole(found, "version") else UNSAID
        if not self.ours:
            return
        self.last = line
        self.names.add(name)
        if name == Event.RANK_START and whole(found, "rank", "pid"):
            self.pids[found["rank"]] = found["pid"]
        elif name == Event.RANK_EXIT and whole(found, "rank", "code", "signal") and len(self.exits) < EXITS:
            self.exits.append(found)
        elif name == Event.ENDED and found.get("state") in ENDINGS and whole(found, "code"):
            self.end = self.end or {"reason": "", "left": [], **found}
        elif name == Event.NOTICE:
            self.notice = found

    def _beats_elsewhere(self, holder: Any) -> bool:
        """Tell whether the agent is on another machine that shares this folder, and still writes: its process says
        nothing here."""
        host = (holder or {}).get("host")
        if not host or host == os.uname().nodename:
            return False
        try:
            return time.time() - os.stat(self.path).st_mtime < SILENT_S
        except OSError:
            return False

    def state(self) -> dict[str, Any]:
        """`state` and what explains it, as in the answer of `status`."""
        if not self.attempt:
            return {"state": "absent"}
        holder = read_json(os.path.join(self.run_dir, "agent.pid"))
        gone = not self.end and not alive(holder) and not self._beats_elsewhere(holder)
        if gone:
            self.read()  # its last word may have come after our look and before its end
        if self.end:
            return {key: self.end[key] for key in ("state", "code", "reason", "left")}
        if gone:
            return {"state": "lost", "code": 1, "reason": "the node agent is gone without a word"}
        phase = 2 if Event.STOPPING in self.names else 1 if Event.TORCHRUN in self.names else 0
        return {"state": AT_WORK[phase]}

    @property
    def progress(self) -> dict[str, Any] | None:
        return parsed(self.last_progress)

    @property
    def last_unix(self) -> float | None:
        found = parsed(self.last)
        return found["at"] if found else None


def parsed(line: bytes) -> dict[str, Any] | None:
    """An event; None for what is none. Ranks can write to this file too, and a full disk tears its lines."""
    try:
        found = json.loads(line[:LINE_BYTES])
        name, at = found["event"], found["at"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    fits = isinstance(name, str) and name in EVENTS and type(at) in (int, float) and 0 <= at < LATEST
    return found if fits else None


def whole(found: dict[str, Any], *names: str) -> bool:
    """Check that these fields are whole numbers, none of them negative."""
    return all(type(found.get(name)) is int and 0 <= found[name] < 1 << 31 for name in names)
