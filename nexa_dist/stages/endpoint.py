"""Questions to any OpenAI-compatible server, in so many threads at once as its config allows.

Every attempt is bounded in time and bytes, whatever the server does; what passes is tried again after a growing pause
with jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and a 429 holds all back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from nexa_dist.errors import UsageError
from nexa_dist.secrets import remember
from nexa_dist.stages.endpoint_config import EndpointConfig, is_near
from nexa_dist.stages.endpoint_reply import ENDING, NOTHING, PASSING, Failed, Reply, Usage, answered, refused, words
from nexa_dist.stages.spending import Prices, Spending

__all__ = ["Endpoint", "EndpointConfig", "Failed", "Question", "Reply"]
K = TypeVar("K")
NAP_S = 0.2
"""Seconds after which a thread that waits looks whether it is to stop."""


@dataclass(frozen=True)
class Question:
    """A question to an endpoint; `json_schema` is the JSON Schema of the completion, `logprobs` so many a token."""

    messages: Sequence[Mapping[str, str]]
    json_schema: Mapping[str, Any] | None = None
    logprobs: int | None = None


class Endpoint:
    """A server that is asked. A context manager; its threads and connections end with it."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        spent: Usage = NOTHING,
        stop: Callable[[], bool] = bool,
        drain_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`spent` is what was spent before, of the same budget. When `stop` answers true no attempt is begun, and those
        that were begun have `drain_s` seconds. Raises UsageError where the key is missing."""
        self._config, self._stop, self._drain_s = config, stop, drain_s
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._prices = Prices(config.usd_per_million_prompt or 0.0, config.usd_per_million_completion or 0.0)
        self._spending = Spending(config.budget_tokens, config.budget_usd, spent)
        self._seats = threading.BoundedSemaphore(config.concurrency)
        self._not_before = 0.0
        near = is_near(urlsplit(config.url).hostname or "")
        self._client = httpx.AsyncClient(
            headers=_headers(config),
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=config.concurrency),
            trust_env=not near,  # a proxy is for what is far
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def spent(self) -> Usage:
        return self._spending.spent

    def ask(self, question: Question) -> Reply | Failed:
        """Ask once, with as many attempts as the config allows. Never raises for what a server does."""
        outcome: Reply | Failed = Failed("stopped", tries=0)
        took, begun = Usage(), self._clock()
        for number in range(1, self._config.tries + 1):
            if not self._wait(outcome.retry_after_s or 0.0 if isinstance(outcome, Failed) else 0.0):
                outcome = Failed("stopped", outcome.detail, tries=number - 1)
                break
            with self._seats:
                outcome = replace(self._attempt(question), tries=number)
            took += outcome.usage
            if isinstance(outcome, Reply) or outcome.kind not in PASSING:
                break
            asked, most = outcome.retry_after_s, self._config.retry_after_most_s
            if asked is not None and asked > most:
                outcome = replace(outcome, detail=f"{outcome.detail}; it asks for {asked:.0f} s, {most:.0f} at most")
                break
            outcome = replace(outcome, retry_after_s=self._pause(number, outcome))
        outcome = replace(outcome, usage=took)
        return replace(outcome, seconds=self._clock() - begun) if isinstance(outcome, Reply) else outcome

    def ask_all(self, questions: Iterable[tuple[K, Question]]) -> Iterator[tuple[K, Reply | Failed]]:
        """Ask many, `concurrency` at a time. Answers (key, outcome) as they come, in no order; no question is taken
        from the iterable before a thread is free for it, and none after an outcome that ends all."""
        left, ended = iter(questions), False
        with concurrent.futures.ThreadPoolExecutor(self._config.concurrency) as pool:
            asked: dict[concurrent.futures.Future[Reply | Failed], K] = {}
            while True:
                while not ended and not self._stop() and len(asked) < self._config.concurrency:
                    pair = next(left, None)
                    if pair is None:
                        ended = True
                        break
                    key, question = pair
                    asked[pool.submit(self.ask, question)] = key
                if not asked:
                    return
                done, _ = concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    ended = ended or outcome.kind in ENDING
                    yield asked.pop(future), outcome

    def _attempt(self, question: Question) -> Reply | Failed:
        body = json.dumps(self._body(question)).encode()
        # A token has a byte or more, so this is the most of a prompt, but for the marks of the chat template.
        most = self._prices.of(len(body), self._config.max_tokens, estimated=True)
        if not self._spending.reserve(most, self._stop):
            return Failed("stopped") if self._stop() else Failed("budget", self._budget())
        took = Usage()
        try:
            outcome, told = self._bounded(body, question.json_schema)
            if told is not None:
                took = self._prices.of(told["prompt_tokens"], told.get("completion_tokens") or 0)
            elif outcome.reply or outcome.kind in ("timeout", "too_large", "no_json"):
                took = most  # it may have been billed, and nobody says how much
            return replace(outcome, usage=took)
        finally:
            self._spending.settle(most, took)

    def _bounded(self, body: bytes, schema: Mapping[str, Any] | None) -> tuple[Reply | Failed, dict[str, Any] | None]:
        future = asyncio.run_coroutine_threadsafe(self._once(body), self._loop)
        last = None
        while not concurrent.futures.wait([future], NAP_S).done:
            if last is None and self._stop():
                last = time.monotonic() + self._drain_s
            if last is not None and time.monotonic() > last:
                future.cancel()
                return Failed("timeout", "stopped while it was being asked"), None
        found = future.result()
        if isinstance(found, Failed):
            return found, None
        status, headers, data = found
        if status == 200:
            return answered(data, schema)
        failed = replace(refused(status, data), retry_after_s=_retry_after(headers))
        if failed.kind == "limited":
            asked = min(failed.retry_after_s or self._config.backoff_s, self._config.retry_after_most_s)
            self._not_before = max(self._not_before, self._clock() + asked)
        return failed, None

    async def _once(self, body: bytes) -> tuple[int, Mapping[str, str], bytes] | Failed:
        """One request: (status, headers, body)."""
        got = bytearray()
        try:
            async with (
                asyncio.timeout(self._config.timeout_s),
                self._client.stream("POST", f"{self._config.url}/chat/completions", content=body) as response,
            ):
                if response.headers.get("content-encoding", "identity") != "identity":
                    return Failed("no_json", "a compressed answer, which was not asked for")
                async for chunk in response.aiter_raw(1 << 16):
                    got += chunk
                    if len(got) > self._config.reply_bytes:
                        return Failed("too_large", f"more than {self._config.reply_bytes} bytes")
                return response.status_code, dict(response.headers), bytes(got)
        except (TimeoutError, httpx.TimeoutException):
            return Failed("timeout", f"no whole answer in {self._config.timeout_s:g} s, {len(got)} bytes came")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Failed("unreachable", words(f"{type(error).__name__}: {error}".encode()))

    def _body(self, question: Question) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {"model": config.model, "messages": [dict(one) for one in question.messages]}
        body["max_tokens"] = config.max_tokens
        given = {"temperature": config.temperature, "top_p": config.top_p, "seed": config.seed}
        body |= {name: value for name, value in given.items() if value is not None}
        if question.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": question.logprobs}
            body |= {"return_tokens_as_token_ids": True} if config.token_ids else {}
        if question.json_schema is not None and config.json_mode != "none":
            schema = {"name": "reply", "schema": question.json_schema, "strict": True}
            form = {"type": "json_schema", "json_schema": schema}
            body["response_format"] = form if config.json_mode == "schema" else {"type": "json_object"}
        return body

    def _pause(self, number: int, failed: Failed) -> float:
        """Seconds before the next attempt: what the server asks for, else between half and all of a growing pause."""
        own = min(self._config.backoff_most_s, self._config.backoff_s * 2.0 ** min(number - 1, 30))
        return max(failed.retry_after_s or 0.0, own * (0.5 + 0.5 * self._jitter()))

    def _wait(self, pause_s: float) -> bool:
        """Wait for so long, and until no 429 forbids it; false when it is to stop."""
        mine = self._clock() + pause_s
        while not self._stop():
            left = max(mine, self._not_before) - self._clock()
            if left <= 0:
                return True
            self._sleep(min(left, NAP_S))
        return False

    def _budget(self) -> str:
        spent = self._spending.spent
        return f"{spent.prompt_tokens + spent.completion_tokens} tokens and {spent.usd:.4f} USD are spent"


def _headers(config: EndpointConfig) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    if config.key_env:
        key = os.environ.get(config.key_env, "").strip()
        if not key:
            raise UsageError(
                f"endpoint.key_env: the variable {config.key_env} is not set",
                hint=f"export {config.key_env}=…; for a run also secrets: [{config.key_env}]",
            )
        if not key.isascii() or not key.isprintable():
            raise UsageError(f"endpoint.key_env: {config.key_env} holds characters that no key has")
        remember([key])
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After, which may be a date (RFC 9110, 10.2.3)."""
    told = headers.get("retry-after", "").strip()
    if told.replace(".", "", 1).isdecimal() and told.isascii():
        return float(told[:20])
    try:
        at = email.utils.parsedate_to_datetime(told) if told else None
        return max(0.0, at.timestamp() - time.time()) if at else None
    except (ValueError, OverflowError):
        return None
