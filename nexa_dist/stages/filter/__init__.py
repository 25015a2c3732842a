"""The stage filter: which completions are learned from, by rules, a rubric and people, as rows for training."""

from __future__ import annotations

from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.filter.config import FilterConfig as Config

FORMAT = 1

__all__ = ["FORMAT", "Config", "prepare", "run"]


def prepare(config: Config, env: StageEnv) -> None:
    from nexa_dist.stages.filter import sorting  # what it needs is on the nodes, not where the config is read

    sorting.prepare(config, env)


def run(config: Config, env: StageEnv) -> int:
    from nexa_dist.stages.filter import sorting

    return sorting.run(config, env)
