"""What the transformers Trainer gets from train.yaml: its arguments, and the windows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train.env import RankEnv


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Tokens cut into windows of `length`; the last, shorter one is left out."""

    def __init__(self, tokens: np.ndarray[Any, Any], length: int) -> None:
        self._tokens, self._length = tokens, length

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`: int64, shape (length,). The first label has no context: -100, not counted."""
        start = index * self._length
        ids = torch.from_numpy(self._tokens[start : start + self._length].astype(np.int64))
        labels = ids.clone()
        labels[0] = -100
        return {"input_ids": ids, "labels": labels}


def steps_within(config: TrainConfig, step_tokens: int) -> int:
    """Optimizer steps until max_tokens; trainer.steps at most. Raises NexaError when not one fits."""
    assert config.trainer is not None and config.max_tokens is not None
    steps = min(config.trainer.steps, config.max_tokens // step_tokens)
    if steps < 1:
        raise NexaError(
            f"max_tokens {config.max_tokens} is less than the {step_tokens} tokens of one step",
            hint="raise max_tokens, or lower trainer.batch_size or dataset.sequence_length",
        )
    return steps


def arguments(config: TrainConfig, env: RankEnv, more: Mapping[str, Any]) -> TrainingArguments:
    """`more` are those of the backend, which win."""
    cfg = config.trainer
    assert cfg is not None
    cuda = torch.cuda.is_available()
    made: dict[str, Any] = {
        "output_dir": str(env.run_dir),
        "max_steps": cfg.steps,
        "per_device_train_batch_size": cfg.batch_size,
        "learning_rate": cfg.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": cfg.warmup_steps,
        "weight_decay": cfg.weight_decay,
        "bf16": cfg.precision == "bf16",
        "seed": cfg.seed,
        "data_seed": cfg.seed,
        "logging_steps": cfg.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss of nan must be seen
        "save_strategy": "steps",
        "save_steps": cfg.save_every,
        "eval_strategy": "steps" if cfg.eval_every else "no",
        "eval_steps": cfg.eval_every,
        "use_cpu": not cuda,
        "ddp_find_unused_parameters": False,
        "average_tokens_across_devices": False,  # every window counts the same number of tokens
        "dataloader_drop_last": True,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "report_to": "none",
    }
    return TrainingArguments(**{**made, **more})
