"""The stage filter: which completions are learned from, by rules, a rubric and people, as rows for training."""

from __future__ import annotations

from nexa_dist.stages.filter.config import FilterConfig as Config
from nexa_dist.stages.filter.sorting import prepare, run

FORMAT = 1

__all__ = ["FORMAT", "Config", "prepare", "run"]
