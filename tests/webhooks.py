"""Webhooks on this machine, good and bad: each path of the server behaves as it is called."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BIG_BYTES = 10_000_000


class Server(ThreadingHTTPServer):
    """`got` has (path, message) of each request, in the order of their arrival."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.over = threading.Event()
        self.fail = 0
        """So many requests to /flaky are refused."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def count(self, path: str) -> int:
        return sum(one == f"/{path}" for one, _ in self.got)

    def wait(self, path: str, count: int = 1, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The messages to a path, once there are so many."""
        until = time.monotonic() + seconds
        while self.count(path) < count and time.monotonic() < until:
            time.sleep(0.02)
        return [message for one, message in self.got if one == f"/{path}"]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:  # where a redirect would lead
        self.server.got.append((self.path, {}))
        self._say(200)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, json.loads(data)))
        kind = self.path.strip("/").split("/")[0]
        if kind == "hang":
            self.server.over.wait(60)
        elif kind == "trickle":
            for _ in range(600):  # a status line without an end
                if self.server.over.wait(0.1):
                    break
                self.wfile.write(b"H")
        elif kind == "redirect":
            self.send_response(307)
            self.send_header("Location", self.server.url("elsewhere"))
            self.end_headers()
        elif kind == "big":
            with contextlib.suppress(OSError):
                self.send_response(500)
                self.end_headers()
                for _ in range(BIG_BYTES // 10_000):
                    self.wfile.write(b"x" * 10_000)
        elif kind == "flaky":
            self.server.fail -= 1
            self._say(503 if self.server.fail >= 0 else 200)
        else:
            self._say({"500": 500, "gone": 404}.get(kind, 200))

    def _say(self, code: int) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"no_service token=abcdefgh1234" if code >= 400 else b"ok")


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join(5)
