"""What a backend says of itself to the Trainer that all of them share (trainer.py)."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import agree, control, data, models
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded
from nexa_dist.train.keeper import Keeper
from nexa_dist.train.shard_keeper import ShardKeeper

_dist: Any = torch.distributed  # which says nothing of its stores to a type checker


class Parallel(ABC):
    """How a backend spreads a model over the ranks, and how it saves. Every rank makes one and calls all of it in the
    same order: each call may be a collective. `made` is the NexaTrainer."""

    spreads = False
    """Whether `build` has put the model where it belongs, so that the Trainer must neither move nor wrap it."""
    keeper: ShardKeeper | OnZero
    """Of the checkpoints; every rank makes the same calls to it. There from `start` on."""

    def arguments(self) -> dict[str, Any]:
        """More arguments for transformers.TrainingArguments."""
        return {}

    def forward_waits(self) -> bool:
        """Whether a forward pass waits for other ranks, since parameters are gathered for it."""
        return self.spreads

    def start(self, env: RankEnv) -> tuple[int, Path] | None:
        """(step, checkpoint on this node) to start from; None for a fresh start. Raises NexaError on every rank."""
        return agree.start(env, control.gather(agree.local_step(env)))

    def build(self, config: TrainConfig, dataset: data.Dataset) -> Any:
        """The model that the Trainer gets."""
        return models.build(config, dataset)

    def size(self, model: Any) -> int:
        """Parameters of the whole model, however `build` spread it."""
        return int(model.num_parameters())

    def check(self, made: Any) -> dict[str, Any]:
        """What the model really became, for result.json: `parallel` and more. Raises NexaError where it is not what was
        asked for. Called before the first step, once the Trainer has wrapped it."""
        return {"parallel": type(made.model_wrapped).__name__}

    def load(self, made: Any, folder: Path) -> None:
        """Put the weights of a checkpoint into the unwrapped model."""
        made.load_weights(folder)

    @abstractmethod
    def resume(self, made: Any, folder: Path) -> None:
        """Before the first step, take up what the Trainer did not load of a checkpoint."""

    @abstractmethod
    def save(self, made: Any, *, last: bool) -> None:
        """A checkpoint of this step. A full disk ends the training only when this was the `last` chance to save."""


class OnZero:
    """The keeper of rank 0, which saves for all, with the calls that a ShardKeeper has."""

    def __init__(self, env: RankEnv) -> None:
        self._env, self.keeper = env, Keeper(env)

    def begin(self, step: int) -> None:
        control.on_zero(lambda: self.keeper.begin(step))

    def stopped(self, step: int, signal_at: float) -> None:
        if self._env.rank == 0:
            print(self.keeper.stopped(step, signal_at), flush=True)

    def finish(self, step: int, resumed_from: Path | None) -> dict[str, Any]:
        if self._env.rank != 0:
            return {}
        if resumed_from is not None:
            self.keeper.adopt(resumed_from)  # nothing was left to train, so nothing was saved here
        print(self.keeper.finish(), flush=True)
        return self.keeper.describe(step)

    def write_result(self, result: dict[str, Any]) -> None:
        if self._env.rank == 0:
            self.keeper.write_result(result)


class InShards(Parallel):
    """Checkpoints that are whole on all nodes together. A subclass says what each rank writes."""

    keeper: ShardKeeper

    def __init__(self, env: RankEnv) -> None:
        self._env = env

    def start(self, env: RankEnv) -> tuple[int, Path] | None:
        if not _dist.is_initialized():  # one rank is a group too
            kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            _dist.init_process_group(kinds, store=_dist.HashStore(), rank=0, world_size=1)
        self.keeper = ShardKeeper(env)
        return self.keeper.start()

    @contextlib.contextmanager
    def saving(self, *, last: bool) -> Iterator[None]:
        """What is not saved in the block is said on rank 0, and training goes on; unless it was the `last` chance."""
        try:
            yield
        except Superseded:
            raise
        except NexaError as err:
            if last:
                raise NexaError(str(err), hint="look at the disks of the nodes, then resume") from None
            if self._env.rank == 0:
                print(f"warning: {err}; training goes on", flush=True)


def settle(made: Any) -> None:
    """Lay DDP's gradient buckets out by a batch that counts for nothing: before the first step, as control.py says."""
    model = made.model_wrapped
    tokens = torch.zeros(1, 8, dtype=torch.long, device=made.args.device)
    model.train()
    control.settle_buckets(model, lambda: model(input_ids=tokens, labels=tokens).loss)
