"""`notify` of cluster.yaml: who is told what of a run."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from nexa_dist.secrets import SHORTEST, remember

Event = Literal["run_ended", "attempt_failed", "budget", "deadline", "notice", "replaced"]
EVENTS: tuple[Event, ...] = get_args(Event)
WAYS = ("url", "url_env", "command")
LONGEST = 2048


def check_url(text: str) -> str:
    """The address of a webhook, which is a secret: hidden from here on wherever it stands, also when it is refused.
    Plain http would show it to the network, so that is for addresses of one's own network alone."""
    remember([secret_of(text)])
    try:
        found = urlsplit(text)
        host, _ = found.hostname or "", found.port
    except ValueError:
        raise ValueError("expected https://HOST/…") from None
    if found.scheme not in ("https", "http") or not host or not text.isascii() or not text.isprintable():
        raise ValueError("expected https://HOST/…")
    if " " in text or len(text) > LONGEST or found.fragment:
        raise ValueError(f"expected an address of at most {LONGEST} characters, without spaces and '#'")
    if found.username is not None or found.password is not None:
        raise ValueError("expected an address without a user name")
    if found.scheme == "http" and not _near(host):
        raise ValueError("expected https: over http anybody on the way reads the address, which is a secret")
    return text


def secret_of(url: str) -> str:
    """The part of an address that makes it a secret: what follows the host, unless that is too short to be looked
    for."""
    rest = url.partition("://")[2].partition("/")[2]
    return rest if len(rest) >= SHORTEST else url


def _near(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_private


class Notify(BaseModel):
    """One who is told: exactly one of url, url_env and command."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)

    url: Annotated[str, AfterValidator(check_url)] | None = Field(
        None, description="Webhook that gets each message by POST. It is a secret: url_env keeps it out of this file."
    )
    url_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")] | None = Field(
        None, description="Variable that holds the address of the webhook: of the environment, or of .env."
    )
    command: (
        Annotated[
            tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096)], ...],
            Field(strict=False, min_length=1, max_length=64),
        ]
        | None
    ) = Field(
        None,
        description="A command of yours on the machine of nexa run, word by word; the message comes as JSON on its "
        "standard input. nexa trust FILE allows it.",
    )
    format: Literal["json", "slack"] = Field(
        "json", description="Body of the POST: json has every field, slack is for an incoming webhook of Slack."
    )
    events: Annotated[tuple[Event, ...], Field(strict=False, min_length=1, max_length=len(EVENTS))] = Field(
        EVENTS, description="What is told: run_ended, attempt_failed, budget, deadline, notice, replaced."
    )
    from_nodes: bool = Field(
        False,
        description="When no nexa follows the run, its nodes tell of a notice, a near deadline and the end of an "
        "attempt themselves: the address is then known to them.",
    )
