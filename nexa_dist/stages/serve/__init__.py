"""The stage serve: proof that a model answers. `hold.py` keeps one served, as a run."""

from __future__ import annotations

from nexa_dist.stages.contract import late
from nexa_dist.stages.serve.config import ServeConfig as Config

FORMAT = 1
prepare, run = late("nexa_dist.stages.serve.answering")

__all__ = ["FORMAT", "Config", "prepare", "run"]
