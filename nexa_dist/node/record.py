"""What agent.jsonl tells about an attempt, read once and then only what is added."""

from __future__ import annotations

import json
import os
from typing import Any

from .base import alive, newest_attempt, read_json

FREQUENT = (b'{"event": "heartbeat"', b'{"event": "progress"')


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
        self.names: set[str] = set()
        self.pids: dict[int, int] = {}
        """Rank → its process, as rank_start names it."""
        self.exits: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None
        self.notice: dict[str, Any] | None = None
        self.last: bytes = b""
        self.last_progress: bytes = b""
        self.ours = False
        """Between `started` of this attempt and that of another one."""

    def read(self) -> Record:
        """Raises nothing: a file that is not there is empty."""
        attempt = newest_attempt(self.run_dir) if self.fixed is None else self.fixed
        if attempt != self.attempt:
            self._forget(attempt)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return self
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
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
        try:
            found = json.loads(line)
            name = found["event"]
        except (ValueError, KeyError, TypeError):
            return
        if name == "started":
            self.clear()
            self.ours = found.get("attempt") == self.attempt
        if not self.ours:
            return
        self.last = line
        self.names.add(name)
        if name == "rank_start":
            self.pids[found["rank"]] = found["pid"]
        elif name == "rank_exit":
            self.exits.append(found)
        elif name == "ended":
            self.end = self.end or found
        elif name == "notice":
            self.notice = found

    def state(self) -> dict[str, Any]:
        """`state` and what explains it, as in the answer of `status`."""
        if not self.attempt:
            return {"state": "absent"}
        gone = not self.end and not alive(read_json(os.path.join(self.run_dir, "agent.pid")))
        if gone:
            self.read()  # its last word may have come after our look and before its end
        if self.end:
            return {key: self.end[key] for key in ("state", "code", "reason", "left")}
        if gone:
            return {"state": "lost", "code": 1, "reason": "the node agent is gone without a word"}
        phase = "stopping" if "stopping" in self.names else "running" if "torchrun" in self.names else "preparing"
        return {"state": phase}

    @property
    def progress(self) -> dict[str, Any] | None:
        return dict(json.loads(self.last_progress)) if self.last_progress else None

    @property
    def last_unix(self) -> float | None:
        return float(json.loads(self.last)["at"]) if self.last else None
