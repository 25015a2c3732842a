"""The stage eval: a model's answers scored by a judge, its perplexity, its speed, standard tasks."""

from __future__ import annotations

from nexa_dist.stages.contract import late
from nexa_dist.stages.eval.config import EvalConfig as Config

FORMAT = 1
prepare, run = late("nexa_dist.stages.eval.work")

__all__ = ["FORMAT", "Config", "prepare", "run"]
