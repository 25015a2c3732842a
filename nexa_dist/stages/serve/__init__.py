"""The stage serve: proof that a model answers. `hold.py` keeps one served, as a run."""

from __future__ import annotations

from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.serve.config import ServeConfig as Config

FORMAT = 1

__all__ = ["FORMAT", "Config", "prepare", "run"]


def prepare(config: Config, env: StageEnv) -> None:
    from nexa_dist.stages.serve import answering  # what it needs is on the nodes, not where the config is read

    answering.prepare(config, env)


def run(config: Config, env: StageEnv) -> int:
    from nexa_dist.stages.serve import answering

    return answering.run(config, env)
