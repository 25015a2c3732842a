"""A served model: its server as a child that ends with us, waited for until it answers."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.stages.serve.engines import PROMPT, Engine, ask, figures

LOOPBACK = "127.0.0.1"
POLL_S = 0.3
_SIGNED, _LOOK = "POST /v1/", '"GET /health '
_libc = ctypes.CDLL(None)


@dataclass
class Server:
    """A server that answers. `counted` are requests by its access log, where it has no figures of its own."""

    engine: Engine
    model: Path
    name: str
    """The name of the model in a request."""
    host: str
    port: int
    api: str
    """chat, or completions for a model without a chat template."""
    process: subprocess.Popen[str]
    key: str = field(default="", repr=False)
    counted: int = 0
    answers: bool = False

    @property
    def url(self) -> str:
        host = LOOPBACK if self.host == "0.0.0.0" else self.host  # noqa: S104
        return f"http://{host}:{self.port}/v1"

    def figures(self) -> dict[str, int]:
        """Requests and tokens so far; tokens are known of vLLM alone."""
        if self.engine.name == "vllm":
            with contextlib.suppress(httpx.HTTPError):
                return figures(_get(f"{self.url[:-3]}/metrics").text)
        return {"requests": self.counted}

    def is_healthy(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return _get(f"{self.url[:-3]}/health").status_code == 200
        return False

    def smoke(self, prompt: str = PROMPT, max_tokens: int = 16) -> dict[str, Any]:
        """One short request: what came, in how many seconds. Raises NexaError where nothing usable came."""
        return ask(self.url, self.name, self.api, self.key, prompt, max_tokens)


@contextlib.contextmanager
def serving(
    engine: Engine,
    model: Path,
    *,
    name: str,
    host: str = LOOPBACK,
    port: int = 0,
    key: str = "",
    max_model_len: int | None = None,
    startup_s: float = 900.0,
    grace_s: float = 15.0,
    stop: Callable[[], bool] = bool,
    told: Callable[[str], object] = print,
    quiet: bool = False,
) -> Iterator[Server | None]:
    """Start the server and wait until it answers; None when it was stopped before. At the end it gets SIGTERM and,
    after `grace_s`, SIGKILL; it dies with us however we die. Of a `quiet` one nothing is told unless it never answers.
    Raises NexaError when it ends or is not ready in time, UsageError for what cannot be served, and for an address that
    others reach without a key."""
    api = api_of(model)
    if host not in (LOOPBACK, "localhost", "::1"):
        if not engine.has_keys:
            raise UsageError(f"{engine.why}: it asks nobody for a key, so it stays on {LOOPBACK}", hint="go by ssh")
        if not key:
            raise UsageError(f"{host} can be reached by others, and there is no key to ask for", hint="--key-env NAME")
    port = port or free_port(host)
    process = subprocess.Popen(
        engine.argv(model, name, host, port, max_model_len),
        env=engine.environment(key), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True, preexec_fn=_die_with_parent,
    )  # fmt: skip
    server = Server(engine, model, engine.called(model, name), host, port, api, process, key)
    reader = threading.Thread(target=_relay, args=(server, told, quiet), daemon=True)
    reader.start()
    try:
        yield server if _is_ready(server, startup_s, stop) else None
    finally:
        _end(process, grace_s)
        reader.join(5)


def _is_ready(server: Server, startup_s: float, stop: Callable[[], bool]) -> bool:
    until = time.monotonic() + startup_s
    while not server.is_healthy():
        if stop():
            return False
        if (code := server.process.poll()) is not None:
            raise NexaError(f"the server ended with {code} before it answered", hint="its last lines say why")
        if time.monotonic() > until:
            raise NexaError(f"the server did not answer within {startup_s:.0f} s", hint="--startup-s gives it longer")
        time.sleep(POLL_S)
    server.answers = True
    return True


def _relay(server: Server, told: Callable[[str], object], quiet: bool) -> None:
    """Its lines to our log, and its requests counted. Our own looks are left out; and of transformers, or a quiet one,
    what it says until it answers, which is hundreds of lines, unless it never does."""
    assert server.process.stdout
    kept: deque[str] = deque(maxlen=60)
    for text in server.process.stdout:
        line = text.rstrip("\n")
        server.counted += _SIGNED in line and '" 200' in line
        if not server.answers and (quiet or server.engine.name == "transformers"):
            kept.append(line)
        elif not quiet and _LOOK not in line:
            told(line)
    for line in () if server.answers else kept:
        told(line)


def _end(process: subprocess.Popen[str], grace_s: float) -> None:
    """End the server and what it started, which is its session."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def api_of(model: Path) -> str:
    """chat where the model has a chat template, else completions. Raises UsageError for what is no model."""
    if not (model / "config.json").is_file():
        cure = "merge the adapter into its model first" if (model / "adapter_config.json").exists() else (
            "a folder with config.json, weights and tokenizer is needed")  # fmt: skip
        raise UsageError(f"{model} is no model of transformers: it has no config.json", hint=cure)
    if (model / "chat_template.jinja").exists():
        return "chat"
    try:
        told = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "completions"
    return "chat" if isinstance(told, dict) and told.get("chat_template") else "completions"


def free_port(host: str) -> int:
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def _get(url: str) -> httpx.Response:
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        return client.get(url)
