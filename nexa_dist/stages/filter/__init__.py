"""The stage filter: which completions are learned from, by rules, a rubric and people, as rows for training."""

from __future__ import annotations

from nexa_dist.stages.contract import late
from nexa_dist.stages.filter.config import FilterConfig as Config

FORMAT = 1
prepare, run = late("nexa_dist.stages.filter.sorting")

__all__ = ["FORMAT", "Config", "prepare", "run"]
