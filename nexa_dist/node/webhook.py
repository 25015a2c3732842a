"""One message to a webhook: bounded in time and bytes, and no redirect is followed, which would hand the address on.

Of the agent's modules this one is used by the controller too; like all of them it runs on Python 3.9.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, NamedTuple

TIMEOUT_S = 10.0
"""Seconds for one try in all, whatever the server does meanwhile."""
SAID_BYTES = 200
"""Bytes of an answer that are read: enough for the words of a refusal."""
PASSING = (408, 425, 429)
"""Refusals below 500 that another try may overcome."""


class Answer(NamedTuple):
    """How a try ended. `again`: another one may succeed; `why` has neither the address nor anything that it holds."""

    sent: bool
    again: bool = False
    why: str = ""


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


def post(url: str, data: bytes, ident: str, timeout_s: float = TIMEOUT_S) -> Answer:
    """Sends `data`. `ident` names the message, so that a receiver can pass over one that comes twice."""
    import http.client  # with TLS, which takes a while to load: few agents ever send anything
    import socket
    import threading
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "nexa", "Connection": "close"}
    headers["Idempotency-Key"] = ident
    late = threading.Event()
    try:
        made = _connection(parts.scheme, parts.hostname or "", parts.port, timeout_s)
        with contextlib.closing(made):
            made.connect()
            clock = threading.Timer(timeout_s, _abort, (made.sock, late))
            clock.daemon = True
            clock.start()
            try:
                made.request("POST", urlunsplit(("", "", parts.path or "/", parts.query, "")), data, headers)
                answer = made.getresponse()
                said = b"" if answer.status < 400 else answer.read(SAID_BYTES)
            finally:
                clock.cancel()
    except (OSError, http.client.HTTPException, ValueError) as error:
        slow = late.is_set() or isinstance(error, socket.timeout)
        words = "no answer within %.0f s" % timeout_s if slow else _words(error)
        return Answer(False, True, words)
    if answer.status < 300:
        return Answer(True)
    if answer.status < 400:
        elsewhere = urlsplit(answer.headers.get("Location", "")).hostname or "elsewhere"
        return Answer(False, False, "HTTP %d: it leads to %s, which is not followed" % (answer.status, elsewhere[:100]))
    told = "".join(char if char.isprintable() else " " for char in said.decode(errors="replace")).strip()
    again = answer.status >= 500 or answer.status in PASSING
    return Answer(False, again, "HTTP %d%s" % (answer.status, ": " + told if told else ""))


def _words(error: Exception) -> str:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not accepted: %s" % error.verify_message
    return getattr(error, "strerror", None) or type(error).__name__


def _abort(sock: Any, late: Any) -> None:
    late.set()
    with contextlib.suppress(OSError):
        sock.shutdown(2)  # both ways


def _connection(scheme: str, host: str, port: int | None, timeout_s: float) -> Any:
    import http.client
    import ssl

    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    context = ssl.create_default_context()
    proxy = "" if proxy_bypass(host) else getproxies().get("https", "")
    if not proxy:
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    by = urlsplit(proxy if "://" in proxy else "http://" + proxy)
    made = http.client.HTTPSConnection(by.hostname or "", by.port or 80, timeout=timeout_s, context=context)
    made.set_tunnel(host, port or 443)
    return made
