"""An OpenAI-compatible server on 127.0.0.1 whose answers a test decides: real sockets, real HTTP, no model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Answer:
    """What the server sends. `hang`: nothing after the headers, until the test is over."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    cut: bool = False
    """Promise more bytes than are sent, then close."""


def completion(text: str | None, *, finish: str = "stop", prompt: int = 10, made: int = 5, **more: Any) -> Answer:
    """A completion as vLLM and OpenAI send it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return Answer(
        body=json.dumps({"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}).encode()
    )


class Server:
    """`asked` are the bodies of all requests, in the order they came; `keys` their Authorization headers."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def prompts(self) -> list[str]:
        return [one["messages"][-1]["content"] for one in self.asked]


def passing_hours(
    patch: pytest.MonkeyPatch, answer: Callable[[dict[str, Any], int], Answer]
) -> Callable[[dict[str, Any], int], Answer]:
    """The same answers, but an hour passes on the event loops' clock before one that hangs: its time limit is over at
    once, and no other question's is, however slow this machine; with a concurrency of 1."""
    plain, ahead = asyncio.BaseEventLoop.time, [0.0]
    patch.setattr(asyncio.BaseEventLoop, "time", lambda loop: plain(loop) + ahead[0])

    def late(body: dict[str, Any], number: int) -> Answer:
        found = answer(body, number)
        ahead[0] += 3600.0 * found.hang
        return found

    return late


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[Server]:
    """A server that answers each request by `answer(body, number from 0)`."""
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.asked)
                server.asked.append(body)
                server.keys.append(self.headers.get("Authorization"))
            try:
                self.send(server.answer(body, number))
            except OSError:
                self.close_connection = True

        def send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body) + answer.cut)}
            for name, value in (headers | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if answer.hang:
                server.over.wait(30)
            self.wfile.write(answer.body)
            self.close_connection = self.close_connection or answer.cut

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that hangs up is no error of the server."""

    listener = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
    try:
        yield server
    finally:
        server.over.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
