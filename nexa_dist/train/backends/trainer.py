"""The transformers Trainer with our held-out loss, log lines, stop and result; a backend says how it is parallel."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import agree, control, data, models, progress
from nexa_dist.train.backends import trainer_setup
from nexa_dist.train.backends.parallel import Parallel
from nexa_dist.train.env import RankEnv
from nexa_dist.train.kd.teacher import Distilled
from nexa_dist.train.profile import OwnTime, Profile
from nexa_dist.train.tracking import Tracker

_hf: Any = transformers  # half of its functions carry no types


def train(config: TrainConfig, env: RankEnv, parallel: Parallel) -> int:
    """Train this rank to the end, or to a SIGTERM. Returns the exit code: 0, or 143 after a stop."""
    stop = control.StopSignal()
    _hf.logging.set_verbosity_error()
    _hf.logging.disable_progress_bar()
    control.join(env)
    dataset = data.find(config, env)
    agree.check_same(
        "the dataset",
        control.gather(dataset.sha256),
        "the nodes prepared different text: check that they run the same Python",
    )
    point = parallel.start(env)
    parallel.keeper.begin(point[0] if point else 0)
    tracker = Tracker(config, env)
    try:
        code = NexaTrainer(config, env, dataset, stop, tracker, parallel).run(point)
    finally:
        tracker.close()
    control.leave()
    return code


class NexaTrainer(Trainer):
    """The transformers Trainer with our checkpoints, held-out loss, log lines and stop."""

    model: Any
    processing_class: Any

    def __init__(
        self,
        config: TrainConfig,
        env: RankEnv,
        dataset: data.Dataset,
        stop: control.StopSignal,
        tracker: Tracker,
        parallel: Parallel,
    ) -> None:
        assert config.dataset is not None and config.trainer is not None
        self.cfg, self.env, self.dataset, self.stop = config.trainer, env, dataset, stop
        self.parallel, self.tracker = parallel, tracker
        self.became: dict[str, Any] = {}
        length = config.dataset.sequence_length
        rows = trainer_setup.rows(dataset, "train", length, taught=dataset.taught > 0)
        self.held_out = trainer_setup.rows(dataset, "held_out", length)
        what = "examples" if dataset.of_examples else "windows"
        if len(rows) < self.cfg.batch_size * env.world_size or not len(self.held_out):
            raise NexaError(
                f"{len(rows)} training and {len(self.held_out)} held-out {what} of {length} tokens are too"
                f" few for {env.world_size} ranks × batch_size {self.cfg.batch_size}",
                hint="give more text, or lower dataset.sequence_length or trainer.batch_size",
            )
        self.step_tokens = round(rows.mean_tokens * self.cfg.batch_size * env.world_size)
        """Tokens of a step; of examples, which differ in length, on average."""
        if isinstance(rows, trainer_setup.Examples) and rows.cut and env.rank == 0:
            print(
                f"note: of {len(rows) + rows.left_out} examples {rows.cut} are longer than {length} tokens and are cut;"
                f" {rows.left_out} are left out, since nothing to learn is left of them",
                flush=True,
            )
        if config.max_tokens is not None:
            self.cfg = self.cfg.model_copy(update={"steps": trainer_setup.steps_within(config, self.step_tokens)})
            config = config.model_copy(update={"trainer": self.cfg})
        _hf.set_seed(self.cfg.seed)  # the same first weights on every rank
        model = parallel.build(config, dataset)
        self.parameters = parallel.size(model)
        """Of the whole model, before it is spread."""
        lora = config.model is not None and config.model.lora is not None
        self.trainable = model.num_parameters(only_trainable=True) if lora else self.parameters
        if env.rank == 0:
            print(f"model {self.parameters} parameters, {env.world_size} ranks", flush=True)
        super().__init__(
            model=model,
            args=trainer_setup.arguments(config, env, parallel.arguments(), of_examples=dataset.of_examples),
            train_dataset=rows,
            eval_dataset=self.held_out,
            data_collator=trainer_setup.collate,
            processing_class=models.tokenizer(config, dataset),
        )
        self.distilled: Distilled | None = None
        if self.cfg.use_kd:
            self.compute_loss_func = self.distilled = Distilled(self.cfg, self.args.device)
            if env.rank == 0:
                heard = f" ({dataset.taught} examples have its words, {dataset.unlike} on other tokens)"
                print(f"learns from {self.distilled}{heard if dataset.taught else ''}", flush=True)
        if parallel.spreads:  # transformers' own way with a model that was sharded before it came here
            self.is_distributed_loading_by_transformers = True
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self))
        self.resumed_from: Path | None = None
        self.profile = Profile(config.profile, env, self.cfg.steps)
        self.own = OwnTime(self.model, forward=not parallel.forward_waits(), cuda=torch.cuda.is_available())

    def run(self, point: tuple[int, Path] | None) -> int:
        """Train from `point` (or from nothing), evaluate, leave `result.json`. Returns the exit code."""
        step, self.resumed_from = point or (0, None)
        if point and self.env.rank == 0:
            print(f"resuming from step {step} of {self.resumed_from}", flush=True)
        started = time.monotonic()
        if self.resumed_from is not None and step >= self.cfg.steps:
            self.parallel.load(self, self.resumed_from)
            self.state = TrainerState.load_from_json(str(self.resumed_from / "trainer_state.json"))
            progress.report(step, self.cfg.steps)
        else:
            self.train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None)
        if self.state.global_step < self.cfg.steps:
            self.parallel.keeper.stopped(self.state.global_step, self.stop.at or started)
            return control.EXIT_STOPPED
        self._finish(step, time.monotonic() - started)
        return 0

    def _finish(self, first_step: int, train_s: float) -> None:
        eval_loss = self.evaluate()["eval_loss"]
        nothing = self.resumed_from if first_step >= self.cfg.steps else None
        saved = self.parallel.keeper.finish(self.state.global_step, nothing)
        if self.env.rank != 0:
            return
        done, size = self.dataset, self.parameters
        self.parallel.keeper.write_result(
            {
                "model": self.model.config.name_or_path or f"llama-{size}",
                "dataset": {"path": done.path, "sha256": done.sha256, "bytes": done.bytes, "tokens": done.tokens},
                "checkpoint": saved,
                "eval_report": {**self._report(first_step, train_s), "eval_loss_nats": eval_loss},
                **self.became,
                "wandb_run_id": self.tracker.run_id,
            }
        )
        print(
            f"held-out loss {eval_loss:.4f} nats, unigram entropy {done.unigram_entropy_nats:.4f} nats,"
            f" trained {train_s:.1f} s",
            flush=True,
        )

    def _report(self, first_step: int, train_s: float) -> dict[str, float]:
        """Numbers for the manifest; `train_s` and `tokens_per_s` are of this attempt alone."""
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        steps = self.state.global_step
        return {
            "unigram_entropy_nats": self.dataset.unigram_entropy_nats,
            "held_out_tokens": self.dataset.held_out_tokens,
            "train_loss_first": losses[0],
            "train_loss_last": losses[-1],
            "steps": steps,
            "tokens": steps * self.step_tokens,
            "tokens_per_s": round((steps - first_step) * self.step_tokens / max(train_s, 1e-9), 1),
            "train_s": round(train_s, 3),
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
        }

    @torch.no_grad()
    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Mean loss of all held-out windows in nats a token: a share on each rank, no random number used."""
        self.model.eval()
        mine = range(self.env.rank, len(self.held_out), self.env.world_size)
        most = len(range(0, len(self.held_out), self.env.world_size))
        loss, count = 0.0, 0
        for start in range(0, most, self.cfg.batch_size):
            of_batch = mine[start : start + self.cfg.batch_size]
            rows = [self.held_out[index] for index in of_batch or [0]]  # a sharded model is gathered by all ranks
            batch = self._prepare_inputs(trainer_setup.collate(rows))
            tokens = int((batch["labels"] != -100).sum()) if of_batch else 0
            with self.autocast_smart_context_manager():
                loss += float(self.model(**batch).loss) * tokens
            count += tokens
        self.model.train()
        sums = control.total([loss, count])
        metrics = {"eval_loss": sums[0] / sums[1]}
        self.log({**metrics})
        return metrics

    def get_batch_samples(self, epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        return super().get_batch_samples(self.own.reading(epoch_iterator), *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.profile.range("step"):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with self.profile.range("forward"):
            if self.distilled is not None:
                inputs = self.distilled.look(inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        with self.profile.range("save"):
            self.parallel.save(self, last=self.stop.agreed or self.state.global_step >= self.cfg.steps)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.parallel.load(self, Path(resume_from_checkpoint))

    def load_weights(self, folder: Path) -> None:
        """Put the weights of a whole checkpoint into the model, from transformers' own files."""
        super()._load_from_checkpoint(str(folder))

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self.parallel.spreads:
            super()._move_model_to_device(model, device)

    def begin(self) -> None:
        """Before the first step of this process, with the model as the Trainer wrapped it."""
        self.became = self.parallel.check(self)
        seed = self.cfg.seed + 1_000_003 * (self.env.rank + 1)  # else all ranks drop the same units
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        if self.resumed_from is not None:
            # this config's intervals, not the saved ones
            state: Any = self.state
            state.compute_steps(self.args, state.max_steps)
            self.parallel.resume(self, self.resumed_from)
        progress.report(self.state.global_step, self.state.max_steps)


class _Steps(TrainerCallback):
    """Log lines on rank 0, and the stop that all ranks agree on at the end of a step."""

    def __init__(self, trainer: NexaTrainer) -> None:
        self._trainer = trainer
        self._since, self._from_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.begin()
        self._since, self._from_step = time.monotonic(), state.global_step
        self._trainer.profile.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        progress.report(state.global_step, state.max_steps, own_s=self._trainer.own.step())
        if self._trainer.stop.agree() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        self._trainer.profile.end(state.global_step, stopping=control.should_training_stop)
        self._trainer.profile.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        trainer, first = self._trainer, self._trainer.env.rank == 0
        trainer.tracker.log(state.global_step, logs)
        if "eval_loss" in logs:
            progress.report(state.global_step, state.max_steps, held_out=logs["eval_loss"])
        if first and "eval_loss" in logs and state.global_step < state.max_steps:
            print(f"step {state.global_step}/{state.max_steps} held-out loss {logs['eval_loss']:.4f}", flush=True)
        if "loss" not in logs:
            return
        now = time.monotonic()
        speed = (state.global_step - self._from_step) * trainer.step_tokens / (now - self._since)
        self._since, self._from_step = now, state.global_step
        rate = logs["learning_rate"]
        progress.report(state.global_step, state.max_steps, logs["loss"], speed, learning_rate=rate)
        if first:
            print(
                f"step {state.global_step}/{state.max_steps} loss {logs['loss']:.4f} lr {rate:.3e} tok/s {speed:.0f}",
                flush=True,
            )
