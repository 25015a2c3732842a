"""One POST to a webhook: a bad server costs a bounded time and few bytes, and the address goes nowhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nexa_dist.node.webhook import SAID_BYTES, body, lines, post
from tests.webhooks import Server, serving

MESSAGE = {"id": "r/run_ended:1", "event": "run_ended", "text": "r failed: <rank> 1 & 2", "why": "oom", "usd": 1.234}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def sent(server: Server, path: str, timeout_s: float = 5.0) -> tuple[bool, bool, str]:
    return tuple(post(server.url(path), body(MESSAGE, "json"), MESSAGE["id"], timeout_s))  # type: ignore[return-value]


def test_a_message_arrives_with_every_field(server: Server) -> None:
    assert sent(server, "ok/secret?a=b") == (True, False, "")
    assert server.got[-1] == ("/ok/secret?a=b", MESSAGE)


@pytest.mark.parametrize("path", ["hang", "trickle"])
def test_a_server_that_does_not_come_to_an_end_is_left(server: Server, path: str) -> None:
    began = time.monotonic()
    assert sent(server, path, timeout_s=0.5) == (False, True, "no answer within 0 s")
    assert time.monotonic() - began < 20


def test_a_redirect_is_not_followed_and_not_tried_again(server: Server) -> None:
    ok, again, why = sent(server, "redirect/secret")
    assert (ok, again) == (False, False) and why == "HTTP 307: it leads to 127.0.0.1, which is not followed"
    assert server.count("elsewhere") == 0


def test_ten_megabytes_are_not_read(server: Server) -> None:
    ok, again, why = sent(server, "big")
    assert (ok, again) == (False, True) and len(why) <= SAID_BYTES + len("HTTP 500: ")


@pytest.mark.parametrize("path, again", [("500", True), ("gone", False)])
def test_a_refusal_says_whether_another_try_may_help(server: Server, path: str, again: bool) -> None:
    ok, more, why = sent(server, path)
    assert not ok and more is again and "no_service" in why


def test_where_nobody_listens_another_try_may_help() -> None:
    with serving() as gone:
        url = gone.url("ok")
    assert post(url, b"{}", "x", 2.0)[:2] == (False, True)


def test_a_message_for_slack_is_text_that_means_nothing_to_slack() -> None:
    assert lines(MESSAGE) == ["r failed: <rank> 1 & 2", "why: oom", "cost: 1.23 USD so far"]
    assert b"r failed: &lt;rank&gt; 1 &amp; 2" in body(MESSAGE, "slack")
