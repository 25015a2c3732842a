"""Outbox of a run: every message is on the disk before it is sent, and a mark for each target after.

The marks outlive the controller, so another one sends nothing twice. Each target has a thread of its own: one that
hangs delays neither the run nor another target. What could not be sent stays, is said, and `nexa notify` sends it.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexa_dist.node.webhook import Answer
from nexa_dist.ops.notify.targets import Target
from nexa_dist.plan.runs.notification import Message
from nexa_dist.run import files
from nexa_dist.run.runner import Runner, abandoning, forget
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact, redact_text

PAUSES_S = (0.0, 5.0, 30.0, 120.0)
"""Seconds before each try; after the last one a message waits for `nexa notify`."""
LAST_S = 5.0
"""Seconds that a command waits, when all else is done, for its last messages to get out."""
OLD_S = 24 * 3600.0
"""Age in seconds from which a message that waits is old news: only `nexa notify` sends it."""


@dataclass
class Letter:
    """One message to one target."""

    key: str
    target: Target
    message: dict[str, Any]
    ready: float = 0.0
    """When it may be tried, by time.monotonic()."""
    tries: int = 0


@dataclass
class Marks:
    """What notify/log.jsonl of a run says: messages by key, and who got which."""

    messages: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: set[tuple[str, str]] = field(default_factory=set)
    why: dict[tuple[str, str], str] = field(default_factory=dict)
    by_nodes: set[str] = field(default_factory=set)
    """Keys that a node's agent has told."""

    @classmethod
    def read(cls, run: RunFolder) -> Marks:
        found = cls()
        for row in files.read_lines(run.path / "notify" / "log.jsonl"):
            key, to = str(row.get("key")), str(row.get("to"))
            if isinstance(row.get("message"), dict):
                found.messages.setdefault(key, row["message"])
            elif row.get("by") == "node":
                found.by_nodes.add(key)
            elif row.get("sent") is True:
                found.sent.add((key, to))
            elif "why" in row:
                found.why[key, to] = str(row["why"])
        return found

    def done(self, key: str, target: Target) -> bool:
        return (key, target.id) in self.sent or (key in self.by_nodes and bool(target.row.get("from_nodes")))


class Outbox:
    """The messages of one run in the hands of one command. Without targets it does nothing at all."""

    def __init__(
        self, run: RunFolder, targets: Sequence[Target], runner: Runner, pauses_s: Sequence[float] = PAUSES_S,
        *, begin: bool = True,
    ) -> None:  # fmt: skip
        """With `begin` what an earlier command could not send is tried at once."""
        self.run, self.targets, self.runner, self.pauses_s = run, tuple(targets), runner, tuple(pauses_s)
        self.path = run.path / "notify" / "log.jsonl"
        self.said: deque[str] = deque(maxlen=20)
        """Words for people, for the thread that talks to them."""
        self.marks = Marks.read(run) if self.targets else Marks()
        self._door = threading.Condition()
        self._letters: list[Letter] = []
        self._threads: dict[str, threading.Thread] = {}
        self._closing = False
        fresh = time.time() - OLD_S
        for key, message in self.marks.messages.items():
            if begin and message.get("at", 0) > fresh:
                self._address(key, message, 0.0)

    def put(self, message: Message, after_s: float = 0.0) -> None:
        """Takes a message, unless it was taken before. `after_s`: a node's agent may have sent it, and says so."""
        if not self.targets or message.key in self.marks.messages:
            return
        told = redact(message.to_json())
        self.marks.messages[message.key] = told
        with contextlib.suppress(OSError):  # a full disk: it is sent all the same
            files.append_json(self.path, {"at": time.time(), "key": message.key, "message": told})
        self._address(message.key, told, after_s)

    def told_by_node(self, key: str) -> None:
        if self.targets and key not in self.marks.by_nodes:
            self.marks.by_nodes.add(key)
            self._write(key, "", by="node")

    def hurry(self) -> None:
        """From here on every message that was not tried yet gets its one try at once, and no other is tried again."""
        with self._door:
            self._closing = True
            self._door.notify_all()

    def close(self, wait_s: float = LAST_S) -> None:
        """Hurries, waits for so long in all, and says what stays."""
        self.hurry()
        until = time.monotonic() + wait_s
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))
        commands = {target.id for target in self.targets if target.row.get("command")}
        late = [thread for ident, thread in self._threads.items() if ident in commands and thread.is_alive()]
        with contextlib.suppress(InterruptedError), abandoning([thread.ident or 0 for thread in late]):
            raise InterruptedError  # ends a command that does not end
        for thread in late:
            thread.join(0.2)
        forget([thread.ident or 0 for thread in late if not thread.is_alive()])
        if left := self.unsent():
            targets = ", ".join(dict.fromkeys(letter.target.name for letter in left))
            cure = f"nexa notify {self.run.run_id} sends them"
            self.said.append(f"warning: {len(left)} messages could not be sent ({targets}) and are kept: {cure}")

    def unsent(self) -> list[Letter]:
        """Every message that a target has not got."""
        return [
            Letter(key, target, message)
            for key, message in self.marks.messages.items()
            for target in self.targets
            if target.wants(str(message.get("event"))) and not self.marks.done(key, target)
        ]

    def _address(self, key: str, message: dict[str, Any], after_s: float) -> None:
        for target in self.targets:
            if not target.wants(str(message.get("event"))) or self.marks.done(key, target):
                continue
            with self._door:
                self._letters.append(Letter(key, target, message, time.monotonic() + after_s))
                if target.id not in self._threads:
                    made = threading.Thread(target=self._deliver, args=(target,), daemon=True, name="notify")
                    self._threads[target.id] = made
                    made.start()
                self._door.notify_all()

    def _next(self, target: Target) -> Letter | None:
        """The next letter to this target that is due; None when there is none and we close."""
        with self._door:
            while True:
                mine = [one for one in self._letters if one.target.id == target.id]
                now = time.monotonic()
                first = min(mine, key=lambda one: one.ready, default=None)
                if self._closing:
                    first = next((one for one in mine if not one.tries), None)
                    if first is None:
                        return None
                if first and (self._closing or first.ready <= now):
                    self._letters.remove(first)
                    return first
                self._door.wait(first.ready - now if first else None)

    def _deliver(self, target: Target) -> None:
        try:
            while letter := self._next(target):
                if not self.marks.done(letter.key, target):
                    self._tried(letter, self.attempt(letter))
        finally:
            forget([threading.get_ident()])  # another thread may get this number

    def _tried(self, letter: Letter, answer: Answer) -> None:
        if answer.sent or self._closing:
            return
        if answer.again and letter.tries < len(self.pauses_s):
            letter.ready = time.monotonic() + max(self.pauses_s[letter.tries], answer.after_s)
            with self._door:
                self._letters.append(letter)
                for other in self._letters if answer.after_s else ():  # it wants none of the others either
                    if other.target.id == letter.target.id:
                        other.ready = max(other.ready, letter.ready)
        else:
            words = f"{letter.target.name} was not told ({letter.message['event']}): {answer.why}"
            self.said.append(f"warning: {words}")

    def attempt(self, letter: Letter) -> Answer:
        """One try, and its mark."""
        letter.tries += 1
        try:
            answer = letter.target.send(self.runner, letter.message)
        except Exception as error:  # whatever it is: a message is no reason to end a run
            answer = Answer(False, False, f"{type(error).__name__}")
        why = redact_text(answer.why)
        key = (letter.key, letter.target.id)
        if answer.sent:
            self.marks.sent.add(key)
            self._write(*key, sent=True)
        else:
            self.marks.why[key] = why
            self._write(*key, why=why, tries=letter.tries)
        return answer._replace(why=why)

    def _write(self, key: str, to: str, **more: Any) -> None:
        with contextlib.suppress(OSError):
            files.append_json(self.path, {"at": time.time(), "key": key, "to": to, **more})


_OPEN: list[tuple[Outbox, Callable[[str], None]]] = []


def close_at_exit(outbox: Outbox, say: Callable[[str], None]) -> None:
    """Leaves the outbox at work until this command ends, which then waits LAST_S for all of them together."""
    if not outbox.targets:
        return
    if not _OPEN:
        atexit.register(close_all)
    _OPEN.append((outbox, say))


def close_all(wait_s: float = LAST_S) -> None:
    until = time.monotonic() + wait_s
    with contextlib.suppress(KeyboardInterrupt, ValueError, OSError):  # nobody waits, or the terminal is gone
        for outbox, _ in _OPEN:
            outbox.hurry()
        while _OPEN:
            outbox, say = _OPEN.pop(0)
            outbox.close(max(0.0, until - time.monotonic()))
            while outbox.said:
                say(outbox.said.popleft())
