"""Messages that the agent sends to webhooks when no controller follows the run, if the user allowed it.

The addresses come on standard input and stay in the memory of the agent. Whether a message got out is an event, by the
key that the controller uses too: nobody is told twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from ..oslib import event
from ..protocol import Event, Reason, Spec
from ..webhook import Answer, body, post
from .controller_lease import Contact

GONE_S = 10.0
"""Without a controller for so long, the agent tells it."""
HEARD_S = 5.0
"""A controller that was connected for so long has heard of it."""
PAUSES_S = (0.0, 5.0, 20.0)
LINGER_S = 60.0
"""Longest that the agent stays for its last message; a `stop` or another attempt ends it at once."""
LOOK_S = 0.5


class Teller:
    """Messages of one attempt on this node. `how` is what the controller gave: `targets`, `run`, `cluster`, `usd`,
    `usd_per_hour`, `near_s`, `deadline_key`; without it nothing is ever sent."""

    def __init__(self, run_dir: str, spec: Spec, how: dict[str, Any] | None) -> None:
        self.run_dir, self.spec, self.how = run_dir, spec, how or {}
        self.contact = Contact(run_dir) if self.how.get("targets") else None
        self.began, self.next_look = time.time(), 0.0
        self.waiting: dict[str, tuple[float, dict[str, Any]]] = {}
        """Messages of which it is not known yet whether a controller heard of them, and since when."""
        self.there: bool | None = None
        self.since = 0.0
        self.threads: list[threading.Thread] = []
        self.near = False

    def look(self, now: float, deadline: float | None, notice: dict[str, Any] | None) -> None:
        """`now` and `deadline` are by boot_clock(), `notice` has the fields of that event."""
        if self.contact is None or now < self.next_look:
            return
        self.next_look = now + LOOK_S
        if notice:
            at = notice["at_unix"]
            text = "%s was given notice: %s at %s" % (self.spec["node"], notice.get("action", "stop"), _clock(at))
            self._put(now, "notice:%s:%.0f" % (self.spec["node"], at), "notice", text)
        left_s = None if deadline is None else deadline - now
        if left_s is not None and not self.near and left_s < self.how.get("near_s", 0.0) and self._first():
            self.near = True
            text = "max_hours ends it in %.0f min, with a checkpoint" % (left_s / 60)
            self._put(now, self.how["deadline_key"], "deadline", text)
        self._settle(now)

    def end(self, now: float, state: str, why: str, cause: str) -> None:
        """The attempt has ended; the first node tells of it."""
        if self.contact is not None and self._first():
            name = "attempt_failed" if state == "failed" else "run_ended"
            why = Reason.SETUP if why.startswith(Reason.SETUP) else why  # the rest of it is a line of the user's own
            text = "attempt %d %s on %s: %s" % (self.spec["attempt"], state, self.spec["node"], cause or why or "done")
            self._put(now, "%s:%d" % (name, self.spec["attempt"]), name, text, state=state, cause=cause or why)

    def linger(self, clock: Any) -> None:
        """Stays until what there is to tell is told, or for LINGER_S."""
        until = clock() + LINGER_S
        while self.contact is not None and clock() < until:
            self._settle(clock())
            if not self.waiting and not any(thread.is_alive() for thread in self.threads):
                return
            time.sleep(0.1)

    def _first(self) -> bool:
        return self.spec.get("node_rank", 0) == 0

    def _put(self, now: float, key: str, name: str, text: str, **more: Any) -> None:
        if key in self.waiting:
            return
        hours = (time.time() - self.began) / 3600
        usd = round(self.how.get("usd", 0.0) + hours * self.how.get("usd_per_hour", 0.0), 4)
        run = self.how["run"]
        told = {
            "id": "%s/%s" % (run, key),
            "event": name,
            "text": "%s: %s; no nexa follows it" % (run, text),
            "run": run,
        }
        told.update(cluster=self.how["cluster"], attempt=self.spec["attempt"], usd=usd, next="nexa attach %s" % run)
        told.update(more, at=time.time(), **{"from": self.spec["node"]})
        self.waiting[key] = now, told

    def _settle(self, now: float) -> None:
        """Sends what no controller heard of; drops what one did."""
        assert self.contact is not None
        there = self.contact.followed()
        if there != self.there:
            self.there, self.since = there, now
        for key, (put, message) in list(self.waiting.items()):
            quiet_s = now - max(put, self.since)
            if there and quiet_s >= HEARD_S:
                del self.waiting[key]
            elif not there and now - self.since >= self.how.get("gone_s", GONE_S):
                del self.waiting[key]
                thread = threading.Thread(target=self._send, args=(key, message), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _send(self, key: str, message: dict[str, Any]) -> None:
        sent, why = True, ""
        env = {**os.environ, **(self.spec.get("env") or {})}
        for target in self.how["targets"]:
            if message["event"] not in target["events"].split():
                continue
            answer = Answer(False, True)
            for pause in PAUSES_S:
                if not answer.again:
                    break
                time.sleep(max(pause, answer.after_s))
                answer = send(target, message, env)
            sent, why = sent and answer.sent, why or answer.why
        event(self.run_dir, Event.TOLD, key=key, sent=sent, why=why)


def send(target: dict[str, str], message: dict[str, Any], env: Mapping[str, str] = os.environ) -> Answer:
    """One try from this node, by the proxy and the certificates that `env` names."""
    return post(target["url"], body(message, target["format"]), message["id"], env=env)


def tell(asked: dict[str, Any]) -> dict[str, Any]:
    """The command `tell`: `asked` is {"targets", "message"}. Answers {"told": [{"sent", "why"}]}, in their order."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda target: send(target, asked["message"]), asked["targets"]))
    return {"told": [{"sent": answer.sent, "why": answer.why} for answer in answers]}


def _clock(unix: float) -> str:
    return time.strftime("%H:%M UTC", time.gmtime(unix))


def leave(*_: Any) -> None:
    """What SIGTERM does once the attempt is over: nobody waits for a message."""
    os._exit(0)
