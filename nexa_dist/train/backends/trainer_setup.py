"""What the transformers Trainer gets from train.yaml: its arguments, and the windows of text or the examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import data
from nexa_dist.train.env import RankEnv
from nexa_dist.train.kd.teacher import IDS, LOGPROBS


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Tokens cut into windows of `length`; the last, shorter one is left out."""

    def __init__(self, tokens: np.ndarray[Any, Any], length: int) -> None:
        self._tokens, self._length = tokens, length

    @property
    def mean_tokens(self) -> float:
        return float(self._length)

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`: int64, shape (length,). The first label has no context: -100, not counted."""
        start = index * self._length
        ids = torch.from_numpy(self._tokens[start : start + self._length].astype(np.int64))
        labels = ids.clone()
        labels[0] = -100
        return {"input_ids": ids, "labels": labels}


class Examples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Examples of at most `length` tokens: what is longer is cut, and what then has nothing to learn is left out.
    `taught`: with what a teacher said of them."""

    def __init__(self, dataset: data.Dataset, part: str, length: int, *, taught: bool = False) -> None:
        self._tokens, self._mask = dataset.part(part), dataset.part(f"{part}_mask")
        self._said = [dataset.part(f"{part}_kd_{name}") for name in ("at", "ids", "logprobs")] if taught else None
        ends = np.asarray(dataset.part(f"{part}_ends"))
        starts = np.concatenate([[0], ends[:-1]])
        stops = np.minimum(ends, starts + length)
        learned = np.concatenate([[0], np.cumsum(self._mask)])
        kept = learned[stops] > learned[starts]
        self.cut, self.left_out = int((stops < ends).sum()), int((~kept).sum())
        self._ranges = np.stack([starts, stops], axis=1)[kept]

    @property
    def mean_tokens(self) -> float:
        """Tokens an example, those that are not learned too."""
        return float((self._ranges[:, 1] - self._ranges[:, 0]).mean())

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`: int64, shape (tokens,); the label of what is not learned is -100. Of a teacher the
        columns that kd.loss.of_rows takes, shape (tokens, k)."""
        place = slice(*self._ranges[index])
        ids = torch.from_numpy(self._tokens[place].astype(np.int64))
        row = {"input_ids": ids, "labels": ids.masked_fill(torch.from_numpy(~self._mask[place]), -100)}
        if self._said is None:
            return row
        at, top, logprobs = self._said
        there = at[place, None] >= 0
        row[IDS] = torch.from_numpy(np.where(there, top[at[place]], 0).astype(np.int64))
        row[LOGPROBS] = torch.from_numpy(np.where(there, logprobs[at[place]], np.float32(-np.inf)))
        return row


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch, shape (rows, tokens of the longest). What fills up comes last and has no label, so causal attention
    needs no mask for it."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        name: pad([row[name] for row in rows], batch_first=True, padding_value=fill)
        for name, fill in (("input_ids", 0), ("labels", -100), (IDS, 0), (LOGPROBS, -np.inf))
        if name in rows[0]
    }


def rows(dataset: data.Dataset, part: str, length: int, *, taught: bool = False) -> Windows | Examples:
    """The data of `train` or `held_out`."""
    if dataset.of_examples:
        return Examples(dataset, part, length, taught=taught)
    return Windows(dataset.part(part), length)


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


def arguments(
    config: TrainConfig, env: RankEnv, more: Mapping[str, Any], *, of_examples: bool = False
) -> TrainingArguments:
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
        "average_tokens_across_devices": of_examples,  # every window counts the same number of tokens
        "dataloader_drop_last": True,
        "remove_unused_columns": False,  # a teacher's are read before the model
        "dataloader_pin_memory": cuda,
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "report_to": "none",
    }
    return TrainingArguments(**{**made, **more})
