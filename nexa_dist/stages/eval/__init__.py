"""The stage eval: a model's answers scored by a judge, its perplexity, its speed, standard tasks."""

from __future__ import annotations

from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.eval.config import EvalConfig as Config

FORMAT = 1

__all__ = ["FORMAT", "Config", "prepare", "run"]


def prepare(config: Config, env: StageEnv) -> None:
    from nexa_dist.stages.eval import work  # what it needs is on the nodes, not where the config is read

    work.prepare(config, env)


def run(config: Config, env: StageEnv) -> int:
    from nexa_dist.stages.eval import work

    return work.run(config, env)
