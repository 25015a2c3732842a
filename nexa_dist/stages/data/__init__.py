"""The stage data: rows of Parquet, JSONL or CSV become a clean, deduplicated, split dataset with its statistics."""

from __future__ import annotations

from nexa_dist.stages.contract import late
from nexa_dist.stages.data.config import DataConfig as Config

FORMAT = 2
prepare, run = late("nexa_dist.stages.data.steps")

__all__ = ["FORMAT", "Config", "prepare", "run"]
