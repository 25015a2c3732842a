"""The stage teach: completions of a teacher for every row, asked once each, whatever happens meanwhile."""

from __future__ import annotations

from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.teach.config import TeachConfig as Config

FORMAT = 1

__all__ = ["FORMAT", "Config", "prepare", "run"]


def prepare(config: Config, env: StageEnv) -> None:
    from nexa_dist.stages.teach import asking  # what it needs is on the nodes, not where the config is read

    asking.prepare(config, env)


def run(config: Config, env: StageEnv) -> int:
    from nexa_dist.stages.teach import asking

    return asking.run(config, env)
