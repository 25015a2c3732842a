"""Weights & Biases on rank 0, when the config asks for it. Off means not even imported."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.train.env import RankEnv


class Tracker:
    """One W&B run named after our run id; `offline` writes under the run folder and opens no connection."""

    def __init__(self, config: TrainConfig, env: RankEnv) -> None:
        self._run: Any = None
        if config.wandb in (None, "off") or env.rank != 0:
            return
        wandb = import_module("wandb")
        env.run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project="nexacompute",
            id=env.run_id,
            name=env.run_id,
            group=config.experiment,
            tags=list(config.tags),
            config=config.model_dump(mode="json"),
            dir=str(env.run_dir),
            mode=config.wandb,
            resume="allow" if config.wandb == "online" else None,
            settings=wandb.Settings(silent=True, console="off"),
        )

    @property
    def run_id(self) -> str | None:
        return str(self._run.id) if self._run is not None else None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Flush, end the run and W&B's own service process; needed before the process ends."""
        if self._run is not None:
            self._run.finish()
            import_module("wandb").teardown()
