"""Backend `hf`: the transformers Trainer under DDP, on gloo (CPU) or NCCL (CUDA).

A stopped and resumed training ends with the bits of an unbroken one on CPU, with the same number of ranks: rank
0's checkpoint holds every rank's random state and running loss, and DDP's buckets are settled before step 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.nn.parallel import DistributedDataParallel

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import control
from nexa_dist.train.backends import hf_state, trainer
from nexa_dist.train.backends.parallel import OnZero, Parallel, settle
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded

_NOT_SAVED = (NexaError, OSError, RuntimeError, SafetensorError)  # torch calls a full disk a RuntimeError


def train(config: TrainConfig, env: RankEnv) -> int:
    """Train this rank to the end, or to a SIGTERM. Returns the exit code: 0, or 143 after a stop."""
    return trainer.train(config, env, Replicated(env))


class Replicated(Parallel):
    """DDP: the whole model on every rank. Rank 0 saves for all."""

    keeper: OnZero

    def __init__(self, env: RankEnv) -> None:
        self._env, self.keeper = env, OnZero(env)
        self._snapshot: hf_state.Snapshot | None = None

    def check(self, made: Any) -> dict[str, Any]:
        wrapped: Any = made.model_wrapped
        if not isinstance(wrapped, DistributedDataParallel):
            if self._env.world_size > 1:  # the ranks would train apart, and nothing would say so
                raise NexaError(f"{self._env.world_size} ranks, but the model is a bare {type(wrapped).__name__}")
            return {"parallel": "none"}
        settle(made)
        return {"parallel": "DDP"}

    def save(self, made: Any, *, last: bool) -> None:
        ranks = control.gather_on_zero(hf_state.of_rank(made))
        problem = control.on_zero(lambda: self._store(made, ranks, last))
        if problem and last:
            raise NexaError(problem, hint="look at the disk of rank 0's node, then resume")

    def _store(self, made: Any, ranks: list[dict[str, Any]], last: bool) -> str:
        """Rank 0: what is not saved of this step, in words; empty when all is well, or well under way."""
        step, keeper = made.state.global_step, self.keeper.keeper
        earlier = keeper.pending
        try:
            keeper.settle()
        except Superseded:
            raise
        except _NOT_SAVED as err:
            print(f"warning: checkpoint at step {earlier} was not saved: {err}; training goes on", flush=True)
        in_background = made.cfg.async_save and not last
        self._snapshot = self._snapshot or hf_state.Snapshot(made)
        try:
            fill = self._snapshot.take(ranks, copy=in_background)
            (keeper.save_later if in_background else keeper.save)(step, fill)
        except Superseded:
            raise
        except _NOT_SAVED as err:
            problem = f"checkpoint at step {step} was not saved: {err}"
            if not last:
                print(f"warning: {problem}; training goes on", flush=True)
            return problem
        return ""

    def resume(self, made: Any, folder: Path) -> None:
        hf_state.resume(made, json.loads((folder / hf_state.RANKS).read_text()), self._env)
