"""The notice that the cloud takes this machine back: the instance metadata service (version 2) of AWS, polled.

An error or a time-out is never read as "no notice": only HTTP 404 at the notice's path is.
"""

from __future__ import annotations

import calendar
import http.client
import json
import threading
import time
import urllib.parse
from collections import deque
from typing import Any

from ..protocol import Event

BASE = "http://169.254.169.254"
EVERY_S = 2.0
OFF_AFTER_S = 10.0
TIMEOUT_S = 1.0
TOKEN_TTL_S = 21600
NOTICE = "/latest/meta-data/spot/instance-action"


class Unanswered(Exception):
    """The service gave no answer that can be read."""


class Imds:
    """One question at a time over a connection of its own, each at most a few seconds."""

    def __init__(self, base: str = BASE) -> None:
        address = urllib.parse.urlsplit(base)
        self.host, self.port = address.hostname or "", address.port or 80
        self.token: str | None = None

    def notice(self) -> dict[str, Any] | None:
        """{"action", "at_unix"}, or None when there is none. Raises Unanswered."""
        for _ in range(2):
            if self.token is None:
                self.token = self._new_token()
            status, body = self._ask("GET", NOTICE, {"X-aws-ec2-metadata-token": self.token})
            if status == 404:
                return None
            if status == 200:
                return read_notice(body)
            if status != 401:
                break
            self.token = None  # expired, or the machine was moved: once more with a fresh one
        raise Unanswered("GET %s: HTTP %d" % (NOTICE, status))

    def _new_token(self) -> str:
        status, body = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)})
        text = body.decode("latin-1")
        if status != 200 or not text.isprintable() or not text:
            raise Unanswered("PUT /latest/api/token: HTTP %d" % status)
        return text

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(65536)
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered("%s %s: %s" % (method, path, error or type(error).__name__)) from error
        finally:
            connection.close()


def read_notice(body: bytes) -> dict[str, Any]:
    """Raises Unanswered when this is not what AWS documents."""
    try:
        found = json.loads(body)
        at = calendar.timegm(time.strptime(found["time"], "%Y-%m-%dT%H:%M:%SZ"))
        return {"action": str(found["action"]), "at_unix": at}
    except (ValueError, KeyError, TypeError) as error:
        raise Unanswered("GET %s: not understood: %r" % (NOTICE, body[:200])) from error


class Poller:
    """Asks until a notice comes. `news` are events for the agent: ("imds", {…}) and ("notice", {…})."""

    def __init__(self, base: str = BASE, every_s: float = EVERY_S) -> None:
        self.imds, self.every_s = Imds(base), every_s
        self.news: deque[tuple[str, dict[str, Any]]] = deque()
        self.state = ""
        self.last_answer: float | None = None

    def start(self) -> None:
        """A thread, since a service that does not answer must not hold up the agent."""
        threading.Thread(target=self._run, daemon=True, name="imds").start()

    def _run(self) -> None:
        while not self.step(time.monotonic()):
            time.sleep(self.every_s)

    def step(self, now: float) -> bool:
        """Ask one question. True when the notice has come and no more are needed."""
        self.last_answer = now if self.last_answer is None else self.last_answer
        try:
            found = self.imds.notice()
        except Unanswered as error:
            if now - self.last_answer >= OFF_AFTER_S:
                self._say("off", str(error))
            return False
        self.last_answer = now
        self._say("on", "")
        if found is None:
            return False
        self.news.append((Event.NOTICE, {**found, "seen_unix": time.time()}))
        return True

    def _say(self, state: str, why: str) -> None:
        if state != self.state:
            self.state = state
            self.news.append((Event.IMDS, {"state": state, "why": why}))
