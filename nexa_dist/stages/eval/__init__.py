"""The stage eval: a model's answers scored by a judge, its perplexity, its speed, standard tasks."""

from __future__ import annotations

from nexa_dist.stages.eval.config import EvalConfig as Config
from nexa_dist.stages.eval.work import prepare, run

FORMAT = 1

__all__ = ["FORMAT", "Config", "prepare", "run"]
