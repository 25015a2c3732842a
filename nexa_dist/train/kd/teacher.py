"""The teacher of a training: a frozen model on every rank, or what a dataset has stored of one."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from nexa_dist.config.trainer import TrainerConfig
from nexa_dist.train.kd.loss import Soft, of_model, of_rows, summed

_hf: Any = transformers
IDS, LOGPROBS = "teacher_ids", "teacher_logprobs"
"""Of a batch, where its rows have them."""


class Distilled:
    """The loss that transformers' Trainer asks for, with the teacher's word on the batch that it is about."""

    def __init__(self, config: TrainerConfig, device: torch.device) -> None:
        self._temperature, self._share = config.kd_temperature, config.kd_lambda
        self._now: Soft | None = None
        self.model: Any = None
        """None: the rows have what it said."""
        if config.kd_teacher is not None:
            kind = torch.bfloat16 if config.precision == "bf16" else torch.float32
            found = _hf.AutoModelForCausalLM.from_pretrained(config.kd_teacher, dtype=kind, local_files_only=True)
            self.model = found.eval().requires_grad_(False).to(device)

    def __str__(self) -> str:
        count = f"a teacher of {self.model.num_parameters()} parameters" if self.model else "stored logits of a teacher"
        return f"{count}, temperature {self._temperature:g}, lambda {self._share:g}"

    def look(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Before the student's forward pass: keep what the teacher says of the batch. Returns what is the student's."""
        own = {name: part for name, part in batch.items() if name not in (IDS, LOGPROBS)}
        if self.model is None:
            self._now = of_rows(batch[IDS], batch[LOGPROBS], batch["labels"], self._temperature)
        else:
            with torch.no_grad():
                logits = self.model(input_ids=own["input_ids"], use_cache=False).logits
                self._now = of_model(logits, own["labels"], self._temperature)
        return own

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """After it: the mean over so many learned tokens, which may be those of all ranks."""
        assert self._now is not None
        total = summed(outputs.logits, labels, self._now, self._temperature, self._share)
        self._now = None
        return total / (int((labels[:, 1:] != -100).sum()) if num_items_in_batch is None else num_items_in_batch)
