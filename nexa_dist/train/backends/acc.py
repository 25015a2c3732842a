"""Backend `acc`: FSDP2 as the user's own accelerate config asks for it, on gloo (CPU) or NCCL (CUDA).

Accelerate makes DDP of FSDP2 on a CPU, and says nothing. So torch's `fully_shard` is called here wherever the ranks
run, and what runs on GPUs is what was tested without. A stopped and resumed training ends with the bits of an unbroken
one on CPU, with the same number of ranks; another number of ranks takes up the same checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from nexa_dist.config.backend_files import accelerate
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import control, data, models
from nexa_dist.train.backends import dcp, fsdp, hf_state, trainer
from nexa_dist.train.backends.parallel import InShards
from nexa_dist.train.env import RankEnv

MODEL = "model"
"""Folder of the last checkpoint that transformers' from_pretrained takes."""
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def train(config: TrainConfig, env: RankEnv) -> int:
    """Train this rank to the end, or to a SIGTERM. Returns the exit code: 0, or 143 after a stop."""
    return trainer.train(config, env, Sharded(config, env))


class Sharded(InShards):
    """FSDP2: weights, gradients and moments of AdamW in parts, one a rank; each rank saves its own."""

    spreads = True

    def __init__(self, config: TrainConfig, env: RankEnv) -> None:
        assert config.trainer is not None
        super().__init__(env)
        self._asked = accelerate.read(config)
        self._precision = {"bf16": "bf16", "no": "fp32"}.get(str(self._asked.mixed_precision), config.trainer.precision)
        self._copies = hf_state.Copies()

    def arguments(self) -> dict[str, Any]:
        return {"bf16": False}  # fully_shard does it: autocast on top would cast each weight once more

    def build(self, config: TrainConfig, dataset: data.Dataset) -> Any:
        asked = self._asked.fsdp_config
        empty = asked.fsdp_cpu_ram_efficient_loading and self._env.rank > 0
        model = models.build(config, dataset, empty=empty)
        fsdp.spread(model, asked, self._precision)
        return model

    def check(self, made: Any) -> dict[str, Any]:
        asked = self._asked.fsdp_config
        counts = fsdp.local_parameters(made.model_wrapped)
        if self._env.rank == 0:
            print(f"FSDP2: parameters on each rank {', '.join(map(str, counts))}", flush=True)
            for words in self._asked.unused:
                print(f"note: no effect here of the accelerate config's {words}", flush=True)
        return {
            "parallel": "FSDP2",
            "sharding": {
                "local_parameters": counts,
                "precision": self._precision,
                "offload": asked.fsdp_offload_params,
                "reshard_after_forward": asked.fsdp_reshard_after_forward,
                "activation_checkpointing": asked.fsdp_activation_checkpointing,
            },
        }

    def load(self, made: Any, folder: Path) -> None:
        dcp.read(folder, {f"model.{name}": part for name, part in fsdp.learned(made.model).items()})

    def resume(self, made: Any, folder: Path) -> None:
        optimizer = made.optimizer.optimizer
        state: dict[str, Any] = get_optimizer_state_dict(made.model, optimizer, options=_FLAT)
        named = {f"optimizer.{name}": part for name, part in state.items()}
        dcp.read(folder, named)
        state = {name: named[f"optimizer.{name}"] for name in state}
        groups = optimizer.param_groups
        optimizer.param_groups = [group for group in groups if group["params"]]  # torch 2.13 fails on an empty one
        set_optimizer_state_dict(made.model, optimizer, state, options=_FLAT)
        optimizer.param_groups += [group for group in groups if not group["params"]]  # of adapters: what never decays
        made.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
        ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank_*.json"))]
        if not hf_state.resume(made, ranks, self._env):
            means = {name: sum(rank[name] for rank in ranks) / len(ranks) for name in ("loss_sum", "loss_total")}
            hf_state.take_up(made, {**ranks[0], **means})

    def save(self, made: Any, *, last: bool) -> None:
        step, later = made.state.global_step, made.cfg.async_save and not last
        fsdp.give_up(made.model)
        with self.saving(last=False):
            self.keeper.settle()
        whole: Path | None = None
        try:
            with self.saving(last=last):
                whole = self._whole_model(made) if step >= made.cfg.steps else None
                self.keeper.save(step, self._fill(made, whole, copy=later), later=later)
        finally:
            if whole is not None:  # and did not become a part of the checkpoint
                shutil.rmtree(whole, ignore_errors=True)

    def _fill(self, made: Any, whole: Path | None, *, copy: bool) -> Callable[[Path], None]:
        """What writes this rank's files: a resume reads them all. Without `copy` training must wait for it."""
        rank = self._env.rank
        parts: dict[str, Any] = get_optimizer_state_dict(made.model, made.optimizer.optimizer, options=_FLAT)
        state: dict[str, Any] = {f"model.{name}": part for name, part in fsdp.learned(made.model).items()}
        state |= {f"optimizer.{name}": part for name, part in parts.items()}
        if copy:
            state = self._copies.of(state)
        mine = hf_state.of_rank(made)
        random = "rng_state.pth" if self._env.world_size == 1 else f"rng_state_{rank}.pth"
        schedule = made.lr_scheduler.state_dict()
        steps = json.dumps(dataclasses.asdict(made.state), indent=2, sort_keys=True) + "\n"

        def fill(folder: Path) -> None:
            dcp.write(folder, rank, state)
            (folder / random).write_bytes(mine["rng"])
            (folder / f"rank_{rank:05d}.json").write_text(json.dumps({**mine, "rng": None}))
            if rank == 0:
                torch.save(schedule, folder / "scheduler.pt")
                (folder / "trainer_state.json").write_text(steps, encoding="utf-8")
                if whole is not None:
                    os.rename(whole, folder / MODEL)

        return fill

    def _whole_model(self, made: Any) -> Path:
        """On rank 0, a folder beside the checkpoints with the model as transformers keeps it, in float32."""
        folder = self._env.run_dir / f".tmp-{MODEL}-{os.getpid()}"
        weights = fsdp.whole_model(made.model)

        def write() -> None:
            try:
                shutil.rmtree(folder, ignore_errors=True)
                made.model.save_pretrained(folder, state_dict=weights)
                made.processing_class.save_pretrained(folder)
            except (OSError, RuntimeError) as err:
                shutil.rmtree(folder, ignore_errors=True)
                raise NexaError(f"the whole model could not be written: {err}") from None

        control.on_zero(write)
        return folder
