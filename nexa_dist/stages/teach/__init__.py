"""The stage teach: completions of a teacher for every row, asked once each, whatever happens meanwhile."""

from __future__ import annotations

from nexa_dist.stages.contract import late
from nexa_dist.stages.teach.config import TeachConfig as Config

FORMAT = 1
prepare, run = late("nexa_dist.stages.teach.asking")

__all__ = ["FORMAT", "Config", "prepare", "run"]
