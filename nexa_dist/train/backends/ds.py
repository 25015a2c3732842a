"""Backend `ds`: DeepSpeed's ZeRO below the transformers Trainer, as the user's own JSON asks for it, on gloo (CPU) or
NCCL (CUDA).

A stopped and resumed training ends with the bits of an unbroken one on CPU, with the same number of ranks. Another
number of ranks takes up the same checkpoint by way of DeepSpeed's universal one, which the first rank of each node
makes of it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from nexa_dist.config.backend_files import deepspeed as deepspeed_json
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import control, data, models
from nexa_dist.train.backends import ds_engine, ds_ops, hf_state, trainer
from nexa_dist.train.backends.parallel import InShards
from nexa_dist.train.env import RankEnv

MODEL = "model"
"""Folder of the last checkpoint that transformers' from_pretrained takes."""
WHOLE_AT_MOST = 1_000_000_000
"""Parameters up to which every rank builds the whole model before it is spread, with the weights that DDP begins with.
A larger one is spread while it is built (zero.Init)."""


def train(config: TrainConfig, env: RankEnv) -> int:
    """Train this rank to the end, or to a SIGTERM. Returns the exit code: 0, or 143 after a stop."""
    for name, value in (("RANK", env.rank), ("LOCAL_RANK", env.local_rank), ("WORLD_SIZE", env.world_size)):
        os.environ.setdefault(name, str(value))  # DeepSpeed wants them of one rank alone too
    ds_ops.choose_accelerator(env)
    zero = Zero(config, env)
    try:
        return trainer.train(config, env, zero)
    finally:
        zero.clear()


class Zero(InShards):
    """ZeRO-1, 2 and 3: moments of AdamW, gradients and (3) weights in parts, one a rank; each rank saves its own."""

    def __init__(self, config: TrainConfig, env: RankEnv) -> None:
        super().__init__(env)
        self._config = config
        self._settings = deepspeed_json.settings(config, env.world_size, env.run_dir)
        self._zero: dict[str, Any] = self._settings["zero_optimization"]
        self._begun_at = self._size = 0

    def forward_waits(self) -> bool:
        return bool(self._zero["stage"] == 3)

    def arguments(self) -> dict[str, Any]:
        return {"deepspeed": copy.deepcopy(self._settings), "max_grad_norm": self._settings["gradient_clipping"]}

    def start(self, env: RankEnv) -> tuple[int, Path] | None:
        if "nvme" in (self._place("offload_param"), self._place("offload_optimizer")):
            ds_ops.link_libaio()
        self.clear()
        point = super().start(env)
        if point is None:
            return None
        self._begun_at, folder = point
        ranks = len(list(folder.glob("nexa_rank_*.json")))
        assert self._config.trainer is not None
        if self._begun_at >= self._config.trainer.steps:
            return point
        saved = json.loads((folder / "nexa_rank_0.json").read_text())["offload_optimizer"]
        if "nvme" in (saved, place := self._place("offload_optimizer")) and (saved, ranks) != (place, env.world_size):
            words = f"step {self._begun_at} is of {ranks} ranks with the optimizer on {saved}, and asked for are"
            raise NexaError(
                f"{words} {env.world_size} ranks with it on {place}",
                hint="an optimizer on a disk is taken up by as many ranks, from a disk; one on cpu by any number",
            )
        if ranks == env.world_size:
            return point
        self._settings["checkpoint"] = {"load_universal": True}
        universal = env.run_dir / "universal" / folder.name
        problem = next(filter(None, control.gather(self._convert(folder, universal))), "")
        if problem:
            raise NexaError(f"step {self._begun_at} of {ranks} ranks was not converted for {env.world_size}: {problem}")
        if env.rank == 0:
            print(
                f"checkpoint of {ranks} ranks, converted for {env.world_size} by way of the universal one", flush=True
            )
        return self._begun_at, universal

    def _place(self, part: str) -> str:
        return str(self._zero.get(part, {}).get("device", "none"))

    def _convert(self, folder: Path, universal: Path) -> str:
        """What went wrong, in words, on the first rank of a node; the others wait for it."""
        try:
            if self._env.local_rank == 0:
                ds_engine.universal(folder, universal)
        except (NexaError, OSError) as err:
            return str(err)
        return ""

    def build(self, config: TrainConfig, dataset: data.Dataset) -> Any:
        assert config.trainer is not None
        left = self._begun_at < config.trainer.steps
        self._size = models.parameters(config, dataset)
        if self._zero["stage"] < 3 or self._size <= WHOLE_AT_MOST or not left:
            return models.build(config, dataset)
        import_module("deepspeed").init_distributed()  # zero.Init asks it for the number of ranks
        integration: Any = import_module("transformers.integrations.deepspeed")
        spread = integration.HfDeepSpeedConfig(copy.deepcopy(self._settings))  # while it lives, by zero.Init
        model = models.build(config, dataset)
        del spread
        return model

    def size(self, model: Any) -> int:
        return self._size

    def check(self, made: Any) -> dict[str, Any]:
        engine = made.model_wrapped
        sharding = ds_engine.describe(engine, self._zero, made.parameters)
        ds_engine.keep_errors(engine)
        if self._env.rank == 0:
            each = ", ".join(map(str, sharding["local_parameters"]))
            print(f"ZeRO-{sharding['stage']}: parameters on each rank {each}", flush=True)
        return {"parallel": f"ZeRO-{sharding['stage']}", "sharding": sharding}

    def load(self, made: Any, folder: Path) -> None:
        made.load_weights(folder / MODEL)

    def resume(self, made: Any, folder: Path) -> None:
        same = "checkpoint" not in self._settings
        saved = json.loads((folder / f"nexa_rank_{self._env.rank if same else 0}.json").read_text())
        if same:
            if self._place("offload_optimizer") == "nvme":
                ds_engine.take_up_disk(made.model_wrapped, folder)
            hf_state.take_up(made, saved)
            return
        ds_engine.mend(made.model_wrapped, saved["weight_decay"])
        if self._env.rank == 0:
            print("note: saved by another number of ranks, so this is no bit-exact continuation", flush=True)

    def save(self, made: Any, *, last: bool) -> None:
        with self.saving(last=last):
            self.keeper.save(made.state.global_step, lambda folder: self._fill(made, folder))

    def _fill(self, made: Any, folder: Path) -> None:
        """This rank's files, and on rank 0 those of all. DeepSpeed's part is a collective, so that what fails is raised
        behind it."""
        step, rank, engine = made.state.global_step, self._env.rank, made.model_wrapped
        weights = made.accelerator.get_state_dict(engine) if step >= made.cfg.steps else None
        ds_engine.save(engine, folder, step)
        entry = hf_state.of_rank(made)
        entry["offload_optimizer"] = self._place("offload_optimizer")
        entry["weight_decay"] = [group["weight_decay"] for group in engine.optimizer.param_groups]
        (folder / f"rng_state_{rank}.pth").write_bytes(entry.pop("rng"))
        (folder / f"nexa_rank_{rank}.json").write_text(json.dumps(entry))
        if rank != 0:
            return
        made.state.save_to_json(str(folder / "trainer_state.json"))
        torch.save(made.lr_scheduler.state_dict(), folder / "scheduler.pt")
        if weights is not None:
            made.model.save_pretrained(folder / MODEL, state_dict=weights)
            made.processing_class.save_pretrained(folder / MODEL)

    def clear(self) -> None:
        """Remove what this node swapped out, and what it converted: a killed attempt leaves them."""
        if self._env.local_rank != 0:
            return
        places = [self._zero.get(part, {}).get("nvme_path") for part in ("offload_param", "offload_optimizer")]
        for folder in filter(None, [*places, str(self._env.run_dir / "universal")]):
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # one of the user's holds the run's own, by the name of the run
                os.rmdir(os.path.dirname(folder))
