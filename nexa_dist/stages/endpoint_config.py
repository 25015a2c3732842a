"""Schema of an endpoint that is asked. Nothing heavy is imported: the controller reads it too."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from nexa_dist.config.trainer import Section

INPUT = "input"
"""In place of an address: a model that the stage has as an input."""
HOW = {
    "url", "key_env", "concurrency", "timeout_s", "tries", "backoff_s", "backoff_most_s", "retry_after_most_s",
    "budget_tokens", "budget_usd",
}  # fmt: skip
"""Keys that change where and how fast answers come, and not what they are."""


class EndpointConfig(Section):
    """An OpenAI-compatible server, what is asked of it at a time, and what that may cost."""

    url: str = Field(
        description="Address of the API, such as http://127.0.0.1:8000/v1 (/chat/completions is added); or `input`: "
        "the model of the stage's input of that name is served on the node itself, for as long as the stage takes."
    )
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(
        description="Name of the model, as the server calls it."
    )
    key_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None, description="Name of the environment variable that holds the API key; the key itself is in no file."
    )
    concurrency: int = Field(8, ge=1, le=512, description="Questions that are being asked at a time.")
    timeout_s: float = Field(120.0, gt=0.0, le=3600.0, description="Most seconds that one attempt may take.")
    tries: int = Field(5, ge=1, le=100, description="Attempts of a question before it has failed.")
    backoff_s: float = Field(1.0, gt=0.0, le=600.0, description="Pause before the second attempt, in seconds; doubles.")
    backoff_most_s: float = Field(60.0, gt=0.0, le=3600.0, description="Longest pause of our own, in seconds.")
    retry_after_most_s: float = Field(
        600.0, gt=0.0, le=86_400.0, description="Longest pause in seconds that a server may ask for (Retry-After)."
    )
    reply_bytes: int = Field(1 << 22, ge=1024, le=1 << 28, description="Most bytes of one answer.")
    max_tokens: int = Field(512, ge=1, le=1 << 20, description="Most tokens of a completion.")
    temperature: float | None = Field(None, ge=0.0, le=10.0, description="Sampling temperature; else the server's.")
    top_p: float | None = Field(None, gt=0.0, le=1.0, description="Nucleus of the sampling, a probability.")
    seed: int | None = Field(None, ge=0, le=1 << 53, description="Seed of the sampling, where the server takes one.")
    json_mode: Literal["schema", "object", "none"] = Field(
        "schema",
        description="How JSON is asked for: by its schema (vLLM, OpenAI), as any object, or by the prompt alone.",
    )
    token_ids: bool = Field(False, description="Ask for ids in place of the texts of tokens, which vLLM can.")
    usd_per_million_prompt: float | None = Field(None, ge=0.0, le=1e6, description="Price of a million prompt tokens.")
    usd_per_million_completion: float | None = Field(
        None, ge=0.0, le=1e6, description="Price of a million completion tokens."
    )
    budget_tokens: int | None = Field(None, ge=1, description="Most tokens, of prompts and completions together.")
    budget_usd: float | None = Field(None, gt=0.0, le=1e7, description="Most US dollars, by the prices above.")

    @field_validator("url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        if value == INPUT:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must begin with http:// or https:// and name a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query; key_env names the variable with the key")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        prices = (self.usd_per_million_prompt, self.usd_per_million_completion)
        if self.budget_usd is not None and None in prices:
            raise ValueError("budget_usd needs usd_per_million_prompt and usd_per_million_completion")
        if self.key_env and self.url.startswith("http://") and not is_near(urlsplit(self.url).hostname or ""):
            raise ValueError("a key would go in the clear over http://; use https://, or a tunnel to 127.0.0.1")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """The part that the answers follow from."""
        return self.model_dump(mode="json", exclude=HOW)


def is_near(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
