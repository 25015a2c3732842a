"""The client of an OpenAI-compatible endpoint, against real servers that do what servers do."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from typing import Any

import pytest

pytest.importorskip("httpx")

from nexa_dist.errors import UsageError
from nexa_dist.secrets import redact_text
from nexa_dist.stages.endpoint import Endpoint, EndpointConfig, Question
from nexa_dist.stages.endpoint_reply import ENDING, Failed, Reply, Usage
from tests.teacher import Answer, Server, completion, serving

HELLO = [{"role": "user", "content": "hello"}]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def endpoint(
    server: Server, clock: Clock | None = None, stop: Any = bool, drain_s: float = 5.0, **config: Any
) -> Endpoint:
    clock = clock or Clock()
    values = {"url": server.url, "model": "m", "timeout_s": 20.0, **config}
    spent = values.pop("spent", Usage())
    return Endpoint(
        EndpointConfig(**values), spent=spent, stop=stop, drain_s=drain_s,
        clock=lambda: clock.now, sleep=clock.sleep, jitter=lambda: 1.0,
    )  # fmt: skip


def ask(answers: list[Answer], clock: Clock | None = None, schema: Any = None, **config: Any) -> tuple[Any, Server]:
    """One question to a server that gives these answers in turn, the last one again and again."""
    with (
        serving(lambda _, number: answers[min(number, len(answers) - 1)]) as server,
        endpoint(server, clock, **config) as one,
    ):
        return one.ask(Question(HELLO, json_schema=schema)), server


def test_a_reply_comes_with_its_tokens_and_price() -> None:
    reply, server = ask(
        [completion("fine", prompt=1000, made=500)], usd_per_million_prompt=2.0, usd_per_million_completion=8.0, seed=7
    )
    assert (reply.text, reply.tries, reply.finish) == ("fine", 1, "stop")
    assert reply.usage == Usage(1000, 500, pytest.approx(0.006))
    assert server.asked == [{"model": "m", "messages": HELLO, "max_tokens": 512, "seed": 7}]


@pytest.mark.parametrize(
    ("answer", "kind", "tries"),
    [
        (Answer(500, b"oh"), "server", 3),
        (Answer(503), "server", 3),
        (Answer(429, b'{"error": {"message": "slow"}}'), "limited", 3),
        (Answer(200, b"<html>gateway</html>"), "no_json", 3),
        (Answer(200, b'{"choices": []}'), "no_json", 3),
        (Answer(200, b"[" * 9000), "no_json", 3),
        (Answer(200, b'{"choices": 1', cut=True), "unreachable", 3),
        (Answer(200, b"x" * 20_000), "too_large", 1),
        (Answer(400, b'{"error": {"message": "too long"}}'), "request", 1),
        (Answer(302, headers={"Location": "http://127.0.0.1:1/"}), "request", 1),
        (Answer(401), "denied", 1),
        (Answer(429, b'{"error": {"code": "insufficient_quota"}}'), "denied", 1),
        (Answer(404), "absent", 1),
        (completion("cut of", finish="length"), "truncated", 1),
        (completion(None, finish="content_filter"), "refused", 1),
        (completion("  "), "empty", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_failure_has_a_kind_and_what_passes_is_tried_again(answer: Answer, kind: str, tries: int) -> None:
    failed, server = ask([answer], tries=3, reply_bytes=10_000)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.tries, len(server.asked)) == (kind, tries, tries), failed


def test_what_passes_is_followed_by_the_reply() -> None:
    clock = Clock()
    reply, _ = ask([Answer(500), Answer(502), completion("at last")], clock, backoff_s=2.0)
    assert (reply.text, reply.tries) == ("at last", 3)
    assert clock.slept == pytest.approx(2.0 + 4.0)


def test_pauses_grow_to_a_bound() -> None:
    clock = Clock()
    ask([Answer(500)], clock, backoff_s=1.0, backoff_most_s=4.0, tries=6)
    assert clock.slept == pytest.approx(1 + 2 + 4 + 4 + 4)


def test_retry_after_is_obeyed_in_seconds_and_as_a_date() -> None:
    for told in ("37", email.utils.formatdate(time.time() + 37, usegmt=True)):
        clock = Clock()
        reply, _ = ask([Answer(429, headers={"Retry-After": told}), completion("yes")], clock)
        assert isinstance(reply, Reply)
        assert 34 < clock.slept <= 38


def test_a_server_that_asks_for_a_day_has_failed() -> None:
    clock = Clock()
    failed, server = ask([Answer(503, headers={"Retry-After": "86400"})], clock)
    assert (failed.kind, len(server.asked), clock.slept) == ("server", 1, 0.0)
    assert "86400 s" in failed.detail


def test_a_429_holds_every_thread_back() -> None:
    clock = Clock()
    with (
        serving(
            lambda _, number: Answer(429, headers={"Retry-After": "50"}) if number == 0 else completion("x")
        ) as server,
        endpoint(server, clock) as one,
    ):
        one._wait(0)
        one._attempt(Question(HELLO))
        assert isinstance(one.ask(Question(HELLO)), Reply)
    assert clock.slept == pytest.approx(50.0)


def test_a_server_that_hangs_costs_no_more_than_the_time_limit() -> None:
    begun = time.monotonic()
    failed, _ = ask([Answer(200, b"{", hang=True)], timeout_s=0.3, tries=1)
    assert failed.kind == "timeout"
    assert time.monotonic() - begun < 15


def test_nobody_listens() -> None:
    with serving(lambda *_: completion("x")) as server:
        pass
    with endpoint(server, tries=2) as one:
        failed = one.ask(Question(HELLO))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.tries) == ("unreachable", 2)


def test_json_is_asked_for_by_its_schema_and_parsed() -> None:
    schema = {"type": "object", "properties": {"score": {"type": "number"}}}
    reply, server = ask([completion('{"score": 0.5}')], schema=schema)
    assert reply.data == {"score": 0.5}
    assert server.asked[0]["response_format"]["json_schema"]["schema"] == schema
    reply, server = ask([completion('```json\n{"score": 1}\n```')], schema=schema, json_mode="none")
    assert reply.data == {"score": 1}
    assert "response_format" not in server.asked[0]


def test_a_completion_that_is_no_json_is_kept_with_its_price() -> None:
    failed, server = ask([completion("I think 0.5")], schema={"type": "object"})
    assert (failed.kind, len(server.asked)) == ("bad_json", 1)
    assert failed.reply.text == "I think 0.5"
    assert failed.usage == Usage(10, 5)


def test_logprobs_are_read() -> None:
    top = [{"token": "token_id:5", "logprob": -0.1}, {"token": "token_id:6", "logprob": -2.5}]
    told = {"content": [{"token": "token_id:5", "logprob": -0.1, "bytes": [1], "top_logprobs": top}]}
    with serving(lambda *_: completion("a", logprobs=told)) as server, endpoint(server, token_ids=True) as one:
        reply = one.ask(Question(HELLO, logprobs=2))
    assert isinstance(reply, Reply)
    assert reply.tokens[0].top == (("token_id:5", -0.1), ("token_id:6", -2.5))
    assert (server.asked[0]["top_logprobs"], server.asked[0]["return_tokens_as_token_ids"]) == (2, True)


def test_many_are_asked_at_a_time_but_no_more_than_allowed() -> None:
    three = threading.Barrier(3, lambda: time.sleep(0.05))  # in which a fourth would come
    held: list[int] = []
    most = []

    def answer(body: dict[str, Any], number: int) -> Answer:
        held.append(number)
        most.append(len(held))
        three.wait(20)
        held.pop()
        return completion(body["messages"][0]["content"])

    with serving(answer) as server, endpoint(server, concurrency=3) as one:
        found = dict(one.ask_all((n, Question([{"role": "user", "content": str(n)}])) for n in range(12)))
    assert {key: getattr(reply, "text", reply) for key, reply in found.items()} == {n: str(n) for n in range(12)}
    assert max(most) == 3


def test_a_budget_of_tokens_ends_it_and_is_kept() -> None:
    with (
        serving(lambda *_: completion("x", prompt=90, made=10)) as server,
        endpoint(server, budget_tokens=1000, max_tokens=100, concurrency=4) as one,
    ):
        found = [outcome for _, outcome in one.ask_all((n, Question(HELLO)) for n in range(100))]
        spent = one.spent
    assert 600 <= spent.prompt_tokens + spent.completion_tokens <= 1000
    assert {one.kind for one in found if isinstance(one, Failed)} == {"budget"}
    assert sum(isinstance(one, Reply) for one in found) == len(server.asked) == spent.prompt_tokens // 90


def test_a_budget_in_dollars_counts_what_was_spent_before() -> None:
    prices = {"usd_per_million_prompt": 1.0, "usd_per_million_completion": 1.0, "budget_usd": 1.0}
    failed, server = ask([completion("x")], spent=Usage(usd=0.9999), **prices)
    assert (failed.kind, failed.kind in ENDING, server.asked) == ("budget", True, [])
    with pytest.raises(ValueError, match="budget_usd needs"):
        EndpointConfig(url="http://127.0.0.1/v1", model="m", budget_usd=1.0)


def test_what_nobody_counted_is_booked_at_its_most() -> None:
    answer = json.loads(completion("x").body)
    del answer["usage"]
    reply, _ = ask([Answer(body=json.dumps(answer).encode())], max_tokens=50)
    assert reply.usage.completion_tokens == 50
    assert reply.usage.estimated
    failed, _ = ask([Answer(500)], tries=2)
    assert failed.usage == Usage()


def test_a_stop_begins_nothing_and_drops_what_hangs() -> None:
    with (
        serving(lambda *_: Answer(200, b"{", hang=True)) as server,
        endpoint(server, stop=lambda: len(server.asked) > 0, drain_s=0.1) as one,
    ):
        found = list(one.ask_all((n, Question(HELLO)) for n in range(9)))
    assert found and all(isinstance(outcome, Failed) for _, outcome in found)
    assert 1 <= len(server.asked) <= 8


def test_the_key_comes_from_the_environment_and_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "plain-words-1234")
    echo = Answer(400, b'{"error": {"message": "bad key plain-words-1234"}}')
    failed, server = ask([echo], key_env="TEACHER_KEY")
    assert server.keys == ["Bearer plain-words-1234"]
    assert "plain-words" not in repr(failed)
    assert "plain-words" not in redact_text("said plain-words-1234")
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(UsageError, match="TEACHER_KEY is not set"):
        ask([echo], key_env="TEACHER_KEY")


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "http:///v1", "https://user:word@x/v1", "https://x/v1?api-key=1", "x.example/v1"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        EndpointConfig(url=url, model="m")


def test_a_key_does_not_go_in_the_clear() -> None:
    with pytest.raises(ValueError, match="in the clear"):
        EndpointConfig(url="http://lab.example/v1", model="m", key_env="K")


def test_nothing_is_left_of_an_endpoint() -> None:
    with serving(lambda *_: Answer(200, b"{", hang=True)) as server, endpoint(server, timeout_s=0.1, tries=1) as one:
        one.ask(Question(HELLO))
        assert one._thread.is_alive()
    assert not one._thread.is_alive()
    assert one._loop.is_closed()
