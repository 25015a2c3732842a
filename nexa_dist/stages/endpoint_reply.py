"""What an OpenAI-compatible server answered: a reply, or a failure of a counted kind. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from nexa_dist.secrets import redact_text
from nexa_dist.shape import BEYOND, Strange, lenient, maybe, number, parsed, record, rows, text, whole

MOST_TEXT = 1 << 24
"""Characters of one completion; the bytes of the whole answer are bounded before."""
SHOWN = 300
"""Characters of a server's own words in a failure."""

KINDS = {
    "unreachable": "no connection, or one that broke",
    "timeout": "no whole answer within timeout_s",
    "limited": "429: asked too often, and still so after all tries",
    "server": "5xx: the server failed",
    "request": "another 4xx: the server takes no such request",
    "too_large": "an answer of more than reply_bytes",
    "no_json": "an answer that is no JSON, or not of the API's form",
    "bad_json": "a completion that is no JSON, where JSON was asked for",
    "refused": "the model refused, or a content filter cut the completion",
    "truncated": "the completion reached max_tokens",
    "empty": "a completion without a character",
    "denied": "401, 402, 403, or a quota that is used up: the key is wrong, or may not",
    "absent": "404: no such model or address",
    "budget": "what may be spent is spent",
    "stopped": "stopped before there was an answer",
}
OK = "ok"
"""Kind of a reply."""
PASSING = {"unreachable", "timeout", "limited", "server", "no_json"}
"""Kinds that the next try may not meet."""
ENDING = {"denied", "absent", "budget", "stopped"}
"""Kinds that every other question would meet as well."""


@dataclass(frozen=True)
class Usage:
    """Tokens and US dollars of one question with all its tries. `estimated`: the server did not say, so it is the most
    that it can have been."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.usd + other.usd,
            self.estimated or other.estimated,
        )


NOTHING = Usage()


@dataclass(frozen=True)
class Token:
    """A token of a completion and the most probable ones in its place, as (token, natural logarithm of probability).
    With `token_ids` in the config a token is `token_id:N`."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """A completion. `data` is its JSON, where that was asked for; `tokens` are there where logprobs were."""

    text: str
    model: str = ""
    finish: str = "stop"
    usage: Usage = NOTHING
    data: Any = None
    tokens: tuple[Token, ...] = ()
    seconds: float = 0.0
    tries: int = 1
    kind: ClassVar[str] = OK
    detail: ClassVar[str] = ""

    @property
    def reply(self) -> Reply:
        return self


@dataclass(frozen=True)
class Failed:
    """No usable completion. `reply` is what there is of one: it was paid for, and a person may want to see it."""

    kind: str
    detail: str = ""
    usage: Usage = NOTHING
    reply: Reply | None = None
    tries: int = 1
    retry_after_s: float | None = field(default=None, compare=False)


_count = maybe(whole(0, BEYOND))
_top = record({"token": text(4096), "logprob": number()})
_ANSWER = record(
    {
        "choices": rows(
            record(
                {"message": record({}, {"content": maybe(text(MOST_TEXT)), "refusal": maybe(text(MOST_TEXT))})},
                {
                    "finish_reason": maybe(text(64)),
                    "logprobs": maybe(
                        record({}, {"content": maybe(rows(record(
                            {"token": text(4096), "logprob": number()}, {"top_logprobs": maybe(rows(_top, 1000))}
                        ), 1 << 20))})
                    ),
                },
            ),
            64,
            1,
        )
    },
    {
        "model": lenient(text(256)),
        "usage": lenient(record({"prompt_tokens": _count}, {"completion_tokens": _count})),
    },
)  # fmt: skip
_word = lenient(text(SHOWN))
_ERROR = record({"error": record({}, {"message": _word, "code": _word, "type": _word})})


def answered(body: bytes, schema: Mapping[str, Any] | None) -> tuple[Reply | Failed, dict[str, Any] | None]:
    """The reply in the body of a 200, and the server's own `usage`, None where it does not say."""
    try:
        answer = parsed(body, _ANSWER, len(body))
    except Strange as error:
        return Failed("no_json", f"{error}: {words(body)}"), None
    choice = answer["choices"][0]
    usage = answer.get("usage")
    if usage and usage.get("prompt_tokens") is None:
        usage = None
    content = choice["message"].get("content") or ""
    reply = Reply(
        text=content,
        model=answer.get("model") or "",
        finish=choice.get("finish_reason") or "stop",
        tokens=_tokens(choice),
    )
    if refusal := choice["message"].get("refusal"):
        return Failed("refused", words(refusal.encode()), reply=reply), usage
    if reply.finish == "content_filter":
        return Failed("refused", "the server's content filter", reply=reply), usage
    if reply.finish == "length":
        return Failed("truncated", f"{len(content)} characters", reply=reply), usage
    if not content.strip():
        return Failed("empty", f"finish_reason {reply.finish}", reply=reply), usage
    return (reply if schema is None else _as_json(reply, schema)), usage


def refused(status: int, body: bytes) -> Failed:
    """The failure that a status other than 200 means."""
    try:
        error = parsed(body, _ERROR, len(body))["error"]
    except Strange:
        error = {}
    detail = f"{status} {error.get('message') or ''}".strip() if error else f"{status} {words(body)}".strip()
    detail = words(detail.encode())
    if status in (401, 402, 403) or "insufficient_quota" in (error.get("code"), error.get("type")):
        return Failed("denied", detail)
    if status == 404:
        return Failed("absent", detail)
    if status in (408, 425, 429) or status >= 500:
        return Failed("limited" if status == 429 else "server", detail)
    return Failed("request", detail)


def words(body: bytes) -> str:
    """A server's words to be shown: short, on one line, without secrets or control characters."""
    plain = "".join(char if char.isprintable() else " " for char in body[: 4 * SHOWN].decode(errors="replace"))
    return redact_text(" ".join(plain.split()))[:SHOWN]


def _as_json(reply: Reply, schema: Mapping[str, Any]) -> Reply | Failed:
    """The reply with its JSON; small models like to put it between the marks of a code block. Of the schema only the
    required names at the top are held against it: who reads the values has to check them anyway."""
    plain = reply.text.strip()
    if plain.startswith("```") and plain.endswith("```"):
        plain = plain[3:-3].removeprefix("json").strip()
    try:
        data = json.loads(plain)
    except (ValueError, RecursionError) as error:
        return Failed("bad_json", str(error)[:SHOWN], reply=reply)
    needed = schema.get("required", ())
    if needed and (not isinstance(data, dict) or (missing := [str(name) for name in needed if name not in data])):
        lacks = ", ".join(missing) if isinstance(data, dict) else f"object, it is a {type(data).__name__}"
        return Failed("bad_json", f"no {lacks}"[:SHOWN], reply=reply)
    return replace(reply, data=data)


def _tokens(choice: dict[str, Any]) -> tuple[Token, ...]:
    told = (choice.get("logprobs") or {}).get("content") or ()
    tops = (tuple((top["token"], top["logprob"]) for top in one.get("top_logprobs") or ()) for one in told)
    return tuple(Token(one["token"], one["logprob"], top) for one, top in zip(told, tops, strict=True))
