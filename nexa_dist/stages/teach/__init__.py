"""The stage teach: completions of a teacher for every row, asked once each, whatever happens meanwhile."""

from __future__ import annotations

from nexa_dist.stages.teach.asking import prepare, run
from nexa_dist.stages.teach.config import TeachConfig as Config

FORMAT = 1

__all__ = ["FORMAT", "Config", "prepare", "run"]
