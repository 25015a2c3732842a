"""What the stage data does, in order."""

from __future__ import annotations

from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.data.config import DataConfig


def prepare(config: DataConfig, env: StageEnv) -> None: ...


def run(config: DataConfig, env: StageEnv) -> int:
    del config, env
    return 1
