"""One POST to a webhook: a bad server costs a bounded time and few bytes, and the address goes nowhere else."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexa_dist.node import webhook
from nexa_dist.node.webhook import PATIENCE_S, SAID_BYTES, Answer, body, lines, post
from tests.webhooks import Server, certificates, proxying, serving

HOST = "hooks.example.test"
"""A name that no name server knows: only a proxy can lead there."""

MESSAGE = {"id": "r/run_ended:1", "event": "run_ended", "text": "r failed: <rank> 1 & 2", "why": "oom", "usd": 1.234}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server that speaks TLS alone, and the variable that names who signed for it."""
    authority, context = certificates(tmp_path_factory.mktemp("tls"), HOST, "127.0.0.1")
    with serving(context) as made:
        yield made, {"SSL_CERT_FILE": str(authority)}


def sent(server: Server, path: str, timeout_s: float = 5.0) -> tuple[bool, bool, str]:
    return post(server.url(path), body(MESSAGE, "json"), MESSAGE["id"], timeout_s, {})[:3]


def by(url: str, **env: str) -> Answer:
    return post(url, b"{}", "x", 10.0, env)


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


def test_a_certificate_counts_if_its_authority_is_known(secure: tuple[Server, dict[str, str]], tmp_path: Path) -> None:
    server, env = secure
    assert by(server.url("ok/tls"), **env) == Answer(True) and server.count("ok/tls") == 1
    refused = by(server.url("ok/secret"))
    assert (refused.sent, refused.again, server.count("ok/secret")) == (False, False, 0)
    assert "its certificate is not accepted: " in refused.why and "SSL_CERT_FILE" in refused.why
    other = by(server.url("ok/secret").replace("127.0.0.1", "localhost"), **env)
    assert "not valid for 'localhost'" in other.why and server.count("ok/secret") == 0
    missing = by(server.url("ok"), SSL_CERT_FILE=str(tmp_path / "none.pem"))
    assert missing.why == f"SSL_CERT_FILE ({tmp_path}/none.pem) cannot be read: No such file or directory"


def test_a_server_without_tls_is_not_taken_for_one(server: Server) -> None:
    answer = by(server.url("ok/secret").replace("http:", "https:"))
    assert answer.why.startswith("TLS with it failed: ") and server.count("ok/secret") == 0


def test_a_proxy_is_obeyed_and_sees_only_the_host(secure: tuple[Server, dict[str, str]]) -> None:
    server, env = secure
    with proxying(server) as proxy:
        for name in ("HTTPS_PROXY", "https_proxy"):
            assert by(f"https://{HOST}/ok/proxied", **env, **{name: proxy.url("me:p%40ss@")}) == Answer(True)
        assert proxy.asked == [("CONNECT", f"{HOST}:443", "Basic bWU6cEBzcw==")] * 2
        assert server.count("ok/proxied") == 2
        for rule in (HOST, ".example.test", "*"):
            assert webhook._proxy("https", HOST, {"HTTPS_PROXY": proxy.url(), "NO_PROXY": rule}) is None
        assert webhook._proxy("https", HOST, {"HTTPS_PROXY": proxy.url(), "NO_PROXY": "example.org"})
        assert by(server.url("ok/tls"), **env, HTTPS_PROXY=proxy.url()).sent  # this machine is behind none
        assert "not accepted" in by(f"https://{HOST}/ok/proxied", HTTPS_PROXY=proxy.url()).why
        assert len(proxy.asked) == 3
        assert by("http://10.9.8.7:81/ok/a", HTTP_PROXY=proxy.url(), HTTPS_PROXY="x") == Answer(True)
        assert proxy.asked[3:] == [("POST", "http://10.9.8.7:81/ok/a", None)]


@pytest.mark.parametrize("code, again", [(407, False), (502, True)])
def test_a_proxy_that_refuses_is_named(secure: tuple[Server, dict[str, str]], code: int, again: bool) -> None:
    with proxying(secure[0], code) as proxy:
        answer = by(f"https://{HOST}/ok/secret", **secure[1], HTTPS_PROXY=proxy.url("me:hunter22@"))
    assert answer.why.startswith(f"the proxy 127.0.0.1 refuses: HTTP {code} ") and answer.again is again
    assert "hunter22" not in answer.why and "secret" not in answer.why
    gone = by(f"https://{HOST}/ok", HTTPS_PROXY=proxy.url("me:hunter22@"))
    assert gone == Answer(False, True, "the proxy 127.0.0.1: Connection refused")


@pytest.mark.parametrize("proxy", ["socks5://h:1", "https://me:hunter22@h:1", "http://", "http://h:port", "[::"])
def test_what_is_no_proxy_is_refused_without_its_words(proxy: str) -> None:
    answer = by(f"https://{HOST}/ok", HTTPS_PROXY=proxy)
    assert answer == Answer(False, False, "HTTPS_PROXY is none of the form http://HOST:PORT")


def test_a_proxy_that_never_ends_its_answer_is_left() -> None:
    with proxying(None) as proxy:
        began = time.monotonic()
        assert post(f"https://{HOST}/ok", b"{}", "x", 0.5, {"HTTPS_PROXY": proxy.url()}).why == "no answer within 0 s"
        assert time.monotonic() - began < 20


def test_a_busy_server_says_when_to_come_again(server: Server) -> None:
    def after_s(said: str) -> float:
        answer = by(server.url(f"busy/{said}"))
        assert (answer.sent, answer.again) == (False, True) and answer.why == "HTTP 429"
        return answer.after_s

    assert [after_s(said) for said in ("30", "99999999", "soon", "-5", "")] == [30.0, PATIENCE_S, 0.0, 0.0, 0.0]
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 0 < webhook._seconds(date) <= 100  # the sender's clock and ours are the same here


def test_what_a_server_repeats_of_the_address_is_hidden(server: Server) -> None:
    answer = by(server.url("echo/T0123456/abcdefg?key=hunter22"))
    assert answer.why == "HTTP 404: no such hook: ***, ***"


def test_a_message_for_slack_is_text_that_means_nothing_to_slack() -> None:
    assert lines(MESSAGE) == ["r failed: <rank> 1 & 2", "why: oom", "cost: 1.23 USD so far"]
    assert b"r failed: &lt;rank&gt; 1 &amp; 2" in body(MESSAGE, "slack")
