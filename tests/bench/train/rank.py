"""One rank of a backend under scripts/bench_train: nexa's launcher as it is, with its arguments, and a callback in
transformers' Trainer that notes the time."""

from __future__ import annotations

import os
import sys
from typing import Any

import transformers.trainer
from transformers import TrainerCallback

from nexa_dist.train import launcher
from tests.bench.train.marks import Marks

MARKS = Marks()


class Noted(TrainerCallback):
    """Every Trainer makes one, Axolotl's too. A save comes after the end of its step, and after the log line of it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        MARKS.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        MARKS.stepped()
        if control.should_save and not control.should_log:
            MARKS.before_save()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            MARKS.loss(float(logs["loss"]))
        if control.should_save:
            MARKS.before_save()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        MARKS.after_save()


if __name__ == "__main__":
    of_every_trainer: list[Any] = transformers.trainer.DEFAULT_CALLBACKS
    of_every_trainer.append(Noted)
    status = launcher.main(sys.argv[1:])
    MARKS.write()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as the launcher does
