"""Schema of a teach.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nexa_dist.stages.contract import Column, StageConfig
from nexa_dist.stages.endpoint_config import EndpointConfig


class TeachConfig(StageConfig):
    """Rows of the input `rows`, a prompt for each, and the server that answers: one with an address, or the model of
    the input `teacher`, with `endpoint: {url: input}`."""

    stage: Literal["teach"] = Field(description="teach.")
    endpoint: EndpointConfig = Field(description="Server of the teacher.")
    prompt: str = Field(min_length=1, description="Jinja template of the user's turn; {{ column }} of the row.")
    system: str | None = Field(None, description="Jinja template of the system's turn.")
    id: Column | None = Field(
        None, description="Column with the rows' ids, unique; without it a hash of the row, and equal rows are one."
    )
    keep: tuple[Column, ...] = Field((), max_length=100, description="Columns of the rows that go on to the output.")
    json_schema: dict[str, Any] | None = Field(
        None,
        description="JSON Schema of the completion; one that is no JSON, or lacks what is required, is kept apart.",
    )
    top_logprobs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Store so many most probable tokens a place, with their log-probabilities, for kd of train.yaml. "
        "The server has to give ids of tokens (vLLM does).",
    )
    keep_truncated: bool = Field(False, description="Take completions that reached max_tokens as any other.")
    passes: int = Field(3, ge=1, le=100, description="How often rows are asked again that the server failed on.")
    failed_most: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the rows, 0 to 1, that the server may have failed on after all passes; more of them end "
        "the stage with 1, and the same command asks for those alone.",
    )

    @property
    def identity(self) -> dict[str, Any]:
        told = {**super().identity, "endpoint": self.endpoint.identity}
        return {name: value for name, value in told.items() if name not in ("passes", "failed_most")}
