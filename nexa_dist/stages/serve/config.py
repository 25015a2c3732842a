"""Schema of a serve.yaml: a model that is served for as long as its requests take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nexa_dist.stages.contract import StageConfig


class ServeConfig(StageConfig):
    """The input `model` (run:RUN, stage:NAME or a folder), served and asked: proof that it answers, for the chain. To
    keep a model served is `nexa serve`."""

    stage: Literal["serve"] = Field(description="serve.")
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto: vLLM where it has a device, else transformers serve; the manifest says which."
    )
    prompts: tuple[str, ...] = Field(("Say hello.",), min_length=1, max_length=100, description="What is asked.")
    max_tokens: int = Field(32, ge=1, le=4096, description="Most tokens of an answer.")
    max_model_len: int | None = Field(None, ge=16, description="Longest context, in tokens (vLLM).")
    startup_s: float = Field(900.0, gt=0.0, le=86_400.0, description="Most seconds until the server answers.")
