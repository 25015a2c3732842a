"""The way to a served model by ssh: a port of this machine that leads to its server, and a first request by it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.serving.served import LOOPBACK, state_of
from nexa_dist.run.runner import Stream
from nexa_dist.run.ssh.connections import Link
from nexa_dist.stages.serve import engines

EVERYWHERE = ("0.0.0.0", "::", "localhost")  # noqa: S104
POLL_S = 1.0
TUNNEL_S = 30.0


class Tunnel:
    """A port of this machine that leads to the server on its node, over ssh: it ends with us, however we end."""

    def __init__(self, ctx: Context, port: int) -> None:
        """`port` is that of this machine. Raises UsageError when it is taken; 0 takes a free one."""
        self._ctx, self._to = ctx, 0
        self._stream: Stream | None = None
        self.port = _free(port)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/v1"

    def lead_to(self, link: Link, state: dict[str, Any]) -> None:
        """Make the way to the address of a `state`, unless it is there. Raises NexaError."""
        host, port = state["host"], state["port"]
        host = LOOPBACK if host in EVERYWHERE else f"[{host}]" if ":" in host else host
        if self._to == port and _answers(self.port):
            return
        self.close()
        argv = link.ssh.argv(
            link.node, "-oControlMaster=no", "-oControlPath=none", "-oClearAllForwardings=no",
            "-oExitOnForwardFailure=yes", f"-L{LOOPBACK}:{self.port}:{host}:{port}",
        )  # fmt: skip
        # The kernel closes its input when we are killed; then cat ends, and ssh with it.
        self._stream, self._to = self._ctx.runner.stream((*argv, "exec cat")), port
        until = time.monotonic() + TUNNEL_S
        while not _answers(self.port):
            if time.monotonic() > until:
                self.close()
                raise NexaError(f"no tunnel to {link.node.name}: nothing answers on port {self.port} here")
            time.sleep(0.1)

    def close(self) -> None:
        if self._stream:
            self._stream.end()
        self._stream, self._to = None, 0


class Door:
    """While a served run goes on: waits until it answers, leads a port here to it, and asks it once by that way. A new
    attempt has a new port, so it looks again and again."""

    def __init__(self, ctx: Context, tunnel: Tunnel, key: str, told: Callable[[dict[str, Any]], object]) -> None:
        self._ctx, self._tunnel, self._key, self._told = ctx, tunnel, key, told
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.state: dict[str, Any] = {}
        """What the server said of itself last."""

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
        self._tunnel.close()

    def open(self, link: Link, run_dir: str) -> None:
        self._thread = threading.Thread(target=self._look, args=(link, run_dir), daemon=True)
        self._thread.start()

    def wait(self, goes_on: Callable[[], bool]) -> None:
        """Until Ctrl-C, or until the run has ended: by its server's word, or by its record, which is all that there is
        of a server that failed for good and of a node that was given back."""
        while self._thread and self._thread.is_alive() and goes_on():
            self._thread.join(1.0)

    def _look(self, link: Link, run_dir: str) -> None:
        asked = 0
        while not self._over.wait(POLL_S):
            try:
                self.state = state = state_of(link, run_dir) or {}
                if state.get("state") == "stopped":
                    return
                if state.get("state") != "ready":
                    continue
                self._tunnel.lead_to(link, state)
                if asked != state["port"]:
                    answer = ask(self._tunnel.url, state["model"], state["api"], self._key)
                    asked = state["port"]
                    self._told({"url": self._tunnel.url, **state, "answer": answer})
            except NexaError as error:
                self._ctx.say(f"warning: the served model cannot be reached: {error}")
                self._over.wait(10 * POLL_S)


def ask(url: str, model: str, api: str, key: str) -> dict[str, Any]:
    """One short request: its text, as it may be shown, and seconds. Raises NexaError."""
    answer = engines.ask(url, model, api, key)
    return {**answer, "text": re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", answer["text"])[:200]}


def _free(port: int) -> int:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            raise UsageError(f"port {port} of this machine cannot be had", hint="--port 0 takes a free one") from None
        return int(one.getsockname()[1])


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=2.0):
        return True
    return False
