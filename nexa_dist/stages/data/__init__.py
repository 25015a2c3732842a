"""The stage data: rows of Parquet, JSONL or CSV become a clean, deduplicated, split dataset with its statistics."""

from __future__ import annotations

from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.data.config import DataConfig as Config

FORMAT = 2
__all__ = ["FORMAT", "Config", "prepare", "run"]


def prepare(config: Config, env: StageEnv) -> None:
    """Raises NexaError for inputs that cannot be read, or that lack a column."""
    from nexa_dist.stages.data.steps import prepare as do  # polars is opened when there is work

    do(config, env)


def run(config: Config, env: StageEnv) -> int:
    from nexa_dist.stages.data.steps import run as do

    return do(config, env)
