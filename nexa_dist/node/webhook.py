"""One message to a webhook: bounded in time and bytes, by the proxy that the environment names, to a server whose
certificate is accepted. No redirect is followed, which would hand the address on.

Of the agent's modules this one is used by the controller too; like all of them it runs on Python 3.9.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

TIMEOUT_S = 10.0
"""Seconds for one try in all, whatever name server, proxy and server do meanwhile."""
PATIENCE_S = 300.0
"""Longest wait that a server can ask for (Retry-After)."""
SAID_BYTES = 200
"""Bytes of an answer that are read: enough for the words of a refusal."""
PASSING = (408, 425, 429)
"""Refusals below 500 that another try may overcome."""


SHORTEST = 6
"""Characters of the shortest piece of an address that is hidden in an answer."""


class Answer(NamedTuple):
    """How a try ended. `again`: another one may succeed; `why` has neither the address nor anything that it holds."""

    sent: bool
    again: bool = False
    why: str = ""
    after_s: float = 0.0
    """Seconds that the server wants to be left alone."""


def body(message: dict[str, Any], form: str) -> bytes:
    """Bytes of the message in this form: `json` has every field, `slack` is what an incoming webhook of Slack takes."""
    return json.dumps(message if form == "json" else {"text": _slack(message)}).encode()


def lines(message: dict[str, Any]) -> list[str]:
    """The message as lines for people."""
    usd = message.get("usd")
    more = [("cause", message.get("cause")), ("why", message.get("why"))]
    more += [("cost", None if usd is None else "%.2f USD so far" % usd), ("next", message.get("next"))]
    return [message["text"], *("%s: %s" % (name, words) for name, words in more if words)]


def _slack(message: dict[str, Any]) -> str:
    text = "\n".join(lines(message))
    for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, name)
    return text


def post(
    url: str, data: bytes, ident: str, timeout_s: float = TIMEOUT_S, env: Mapping[str, str] = os.environ
) -> Answer:
    """Sends `data`. `ident` names the message, so that a receiver can pass over one that comes twice. `env` names
    proxies (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) and more certificates (SSL_CERT_FILE)."""
    import threading

    said: list[Answer] = []
    held: list[Any] = []
    late = threading.Event()

    def attempt() -> None:
        answer = _try(url, data, ident, timeout_s, env, held, late)
        said.append(answer._replace(why=_without(url, answer.why)))

    thread = threading.Thread(target=attempt, daemon=True, name="webhook")
    thread.start()
    thread.join(timeout_s)
    ended = said[0] if said else Answer(False, True, "no answer within %.0f s" % timeout_s)
    late.set()
    for sock in held:
        with contextlib.suppress(OSError):
            sock.shutdown(2)  # both ways: whatever waits there ends
        sock.close()
    return ended


def _try(
    url: str, data: bytes, ident: str, timeout_s: float, env: Mapping[str, str], held: list[Any], late: Any
) -> Answer:
    import http.client  # with TLS, which takes a while to load: few agents ever send anything
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "nexa", "Connection": "close"}
    headers.update({"Idempotency-Key": ident, "Host": parts.netloc})
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        proxy = _proxy(parts.scheme, host, env)
        sock = _connected(proxy, host, port, timeout_s)
        with contextlib.closing(sock):
            held.append(sock.dup())
            if late.is_set():  # nobody waits any more, nor closes it
                held.pop().close()
                return Answer(False, True)
            if proxy and parts.scheme == "http":
                target, headers = url, {**headers, **proxy.headers}
            elif proxy:
                _tunnel(sock, host, port, proxy)
            made = http.client.HTTPConnection(host, port)
            made.sock = _secured(sock, host, env) if parts.scheme == "https" else sock
            with contextlib.closing(made):
                made.request("POST", target, data, headers)
                answer = made.getresponse()
                return _judged(answer, b"" if answer.status < 400 else answer.read(SAID_BYTES))
    except _Refused as error:
        return Answer(False, False, str(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _failed(error, timeout_s)


def _judged(answer: Any, said: bytes) -> Answer:
    from urllib.parse import urlsplit

    if 200 <= answer.status < 300:
        return Answer(True)
    if 300 <= answer.status < 400:
        try:
            elsewhere = urlsplit(answer.headers.get("Location", "")).hostname or "elsewhere"
        except ValueError:
            elsewhere = "elsewhere"
        where = _plain(elsewhere[:100])
        return Answer(False, False, "HTTP %d: it leads to %s, which is not followed" % (answer.status, where))
    told = _plain(said.decode(errors="replace"))
    again = answer.status >= 500 or answer.status in PASSING
    after_s = _seconds(answer.headers.get("Retry-After", "")) if again else 0.0
    return Answer(False, again, "HTTP %d%s" % (answer.status, ": " + told if told else ""), after_s)


def _seconds(asked: str) -> float:
    """Seconds of a Retry-After, which is a number or a date (RFC 9110, 10.2.3); at most PATIENCE_S."""
    import time
    from email.utils import parsedate_to_datetime

    try:
        wait = float(asked) if asked.isdigit() else parsedate_to_datetime(asked).timestamp() - time.time()
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), PATIENCE_S)


class _Refused(Exception):
    """What another try does not overcome."""


def _failed(error: Exception, timeout_s: float) -> Answer:
    import socket
    import ssl

    if isinstance(error, socket.timeout):
        return Answer(False, True, "no answer within %.0f s" % timeout_s)
    if isinstance(error, ssl.SSLCertVerificationError):
        words = "its certificate is not accepted: %s (SSL_CERT_FILE names the certificates of one's own)"
        return Answer(False, False, words % error.verify_message)
    if isinstance(error, ssl.SSLError):
        return Answer(False, True, "TLS with it failed: %s" % (error.reason or "it broke off"))
    return Answer(False, True, getattr(error, "strerror", None) or type(error).__name__)


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text).strip()


def _without(url: str, words: str) -> str:
    """The words without anything that makes the address a secret: servers like to repeat what they were asked."""
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    asked = parts.path + ("?" + parts.query if parts.query else "")
    fields = [field.partition("=")[2] for field in parts.query.split("&")]
    pieces = {asked, asked[1:], parts.path, parts.path[1:], parts.query, *parts.path.split("/"), *fields}
    for piece in sorted({*pieces, *map(unquote, pieces)}, key=len, reverse=True):
        if len(piece) >= SHORTEST:
            words = words.replace(piece, "***")
    return words


class _Proxy(NamedTuple):
    host: str
    port: int
    headers: dict[str, str]


def _proxy(scheme: str, host: str, env: Mapping[str, str]) -> _Proxy | None:
    """Proxy on the way to `host`; None for none. This machine is never behind one. Raises _Refused, without a word of
    what the variable holds, for one that is not spoken."""
    import base64
    from urllib.parse import unquote, urlsplit
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # as requests uses it

    named: dict[str, str] = {}
    for key in sorted(env):  # as curl and Python do it: small letters win
        if key.lower() in ("http_proxy", "https_proxy", "no_proxy"):
            named[key.lower()[:-6]] = env[key].strip()
    proxy = named.get(scheme, "")
    if not proxy or host == "localhost" or host.startswith("127.") or host == "::1":
        return None
    if proxy_bypass_environment(host, {"no": named.get("no", "")}):
        return None
    try:
        by = urlsplit(proxy if "://" in proxy else "http://" + proxy)
        at = by.hostname or "", by.port or 80
    except ValueError:
        at = "", 0
    if not at[0] or by.scheme != "http":
        raise _Refused("%s_PROXY is none of the form http://HOST:PORT" % scheme.upper())
    if by.username is None:
        return _Proxy(*at, {})
    word = "%s:%s" % (unquote(by.username), unquote(by.password or ""))
    return _Proxy(*at, {"Proxy-Authorization": "Basic " + base64.b64encode(word.encode()).decode()})


def _connected(proxy: _Proxy | None, host: str, port: int, timeout_s: float) -> Any:
    import socket

    try:
        return socket.create_connection((proxy.host, proxy.port) if proxy else (host, port), timeout_s)
    except OSError as error:
        if proxy is None or isinstance(error, socket.timeout):
            raise
        raise OSError(0, "the proxy %s: %s" % (proxy.host, error.strerror or error)) from None


def _tunnel(sock: Any, host: str, port: int, proxy: _Proxy) -> None:
    """Asks the proxy for a way to the server (RFC 9110, 9.3.6). Raises OSError, or _Refused for good."""
    import http.client

    name = "[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port)
    lines = ["CONNECT %s HTTP/1.1" % name, "Host: " + name, *("%s: %s" % pair for pair in proxy.headers.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    answer = http.client.HTTPResponse(sock, method="CONNECT")
    answer.begin()
    if not 200 <= answer.status < 300:
        words = "the proxy %s refuses: HTTP %d %s" % (proxy.host, answer.status, _plain(answer.reason[:100]))
        raise OSError(0, words) if answer.status >= 500 else _Refused(words)


def _secured(sock: Any, host: str, env: Mapping[str, str]) -> Any:
    import ssl

    context = ssl.create_default_context()
    if more := env.get("SSL_CERT_FILE"):
        try:
            context.load_verify_locations(more)
        except OSError as error:
            raise _Refused("SSL_CERT_FILE (%s) cannot be read: %s" % (more, error.strerror or error)) from None
    return context.wrap_socket(sock, server_hostname=host)
