"""Backend `hf`: the transformers Trainer under DDP, on gloo (CPU) or NCCL (CUDA).

A stopped and resumed training ends with the bits of an unbroken one on CPU, with the same number of ranks: rank
0's checkpoint holds every rank's random state and running loss, and DDP's buckets are settled before step 1.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import agree, control, data, models
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper
from nexa_dist.train.tracking import Tracker

_RANKS = "nexa_ranks.json"
_NOT_SAVED = (NexaError, OSError, RuntimeError, SafetensorError)  # torch calls a full disk a RuntimeError
_hf: Any = transformers  # half of its functions carry no types


def train(config: TrainConfig, env: RankEnv) -> int:
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
    point = agree.start(env, control.gather(agree.local_step(env)))
    tracker = Tracker(config, env)
    trainer = NexaTrainer(config, env, dataset, stop, tracker)
    try:
        code = trainer.run(point)
    finally:
        tracker.close()
    control.leave()
    return code


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


class NexaTrainer(Trainer):
    """The transformers Trainer with our checkpoints, held-out loss, log lines and stop."""

    model: Any
    processing_class: Any

    def __init__(
        self, config: TrainConfig, env: RankEnv, dataset: data.Dataset, stop: control.StopSignal, tracker: Tracker
    ) -> None:
        assert config.dataset is not None and config.trainer is not None
        self.cfg, self.env, self.dataset, self.stop = config.trainer, env, dataset, stop
        self.keeper, self.tracker = Keeper(env), tracker
        length = config.dataset.sequence_length
        windows = Windows(dataset.part("train"), length)
        self.held_out = Windows(dataset.part("held_out"), length)
        self.step_tokens = self.cfg.batch_size * length * env.world_size
        if len(windows) < self.cfg.batch_size * env.world_size or not len(self.held_out):
            raise NexaError(
                f"{len(windows)} training and {len(self.held_out)} held-out windows of {length} tokens are too"
                f" few for {env.world_size} ranks × batch_size {self.cfg.batch_size}",
                hint="give more text, or lower dataset.sequence_length or trainer.batch_size",
            )
        _hf.set_seed(self.cfg.seed)  # the same first weights on every rank
        model = models.build(config, dataset)
        if env.rank == 0:
            print(f"model {model.num_parameters()} parameters, {env.world_size} ranks", flush=True)
        super().__init__(
            model=model,
            args=_arguments(config, env),
            train_dataset=windows,
            eval_dataset=self.held_out,
            data_collator=_hf.default_data_collator,
            processing_class=models.tokenizer(config, dataset),
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self))
        self.resumed_from: Path | None = None

    def run(self, point: tuple[int, Path] | None) -> int:
        """Train from `point` (or from nothing), evaluate, leave `result.json`. Returns the exit code."""
        step, self.resumed_from = point or (0, None)
        if point and self.env.rank == 0:
            print(f"resuming from step {step} of {self.resumed_from}", flush=True)
        started = time.monotonic()
        if self.resumed_from is not None and step >= self.cfg.steps:
            self._load_from_checkpoint(str(self.resumed_from))
            self.state = TrainerState.load_from_json(str(self.resumed_from / "trainer_state.json"))
        else:
            self.train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None)
        if self.state.global_step < self.cfg.steps:
            if self.env.rank == 0:
                print(f"stopped by SIGTERM at step {self.state.global_step}, checkpoint saved", flush=True)
            return control.EXIT_STOPPED
        self._finish(step, time.monotonic() - started)
        return 0

    def _finish(self, first_step: int, train_s: float) -> None:
        eval_loss = self.evaluate()["eval_loss"]
        if self.env.rank != 0:
            return
        done, size = self.dataset, self.model.num_parameters()
        if first_step >= self.cfg.steps and self.resumed_from is not None:
            self.keeper.adopt(self.resumed_from)  # nothing was left to train, so nothing was saved here
        self.keeper.write_result(
            {
                "model": self.model.config.name_or_path or f"llama-{size}",
                "dataset": {"path": done.path, "sha256": done.sha256, "bytes": done.bytes, "tokens": done.tokens},
                "checkpoint": self.keeper.describe(self.state.global_step),
                "eval_report": {**self._report(first_step, train_s), "eval_loss_nats": eval_loss},
                "parallel": "DDP" if self.env.world_size > 1 else "none",
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
            "parameters": self.model.num_parameters(),
        }

    @torch.no_grad()
    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Mean loss of all held-out windows in nats a token: a share on each rank, no random number used."""
        self.model.eval()
        mine = range(self.env.rank, len(self.held_out), self.env.world_size)
        loss, count = 0.0, 0
        for start in range(0, len(mine), self.cfg.batch_size):
            rows = [self.held_out[index] for index in mine[start : start + self.cfg.batch_size]]
            batch = self._prepare_inputs(_hf.default_data_collator(rows))
            tokens = int((batch["labels"] != -100).sum())
            with self.autocast_smart_context_manager():
                loss += float(self.model(**batch).loss) * tokens
            count += tokens
        self.model.train()
        sums = control.total([loss, count])
        metrics = {"eval_loss": sums[0] / sums[1]}
        self.log({**metrics})
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Rank 0 saves for all. A full disk ends the training only when this was the last chance to save."""
        self.store_flos()
        ranks = control.gather_on_zero(self._rank_state())
        problem = ""
        if self.env.rank == 0:
            try:
                self.keeper.save(self.state.global_step, lambda path: self._fill(path, ranks))
            except _NOT_SAVED as err:
                problem = f"checkpoint at step {self.state.global_step} was not saved: {err}"
        problem = control.from_zero(problem)
        if problem and (self.stop.agreed or self.state.global_step >= self.cfg.steps):
            raise NexaError(problem, hint="look at the disk of rank 0's node, then resume")
        if problem and self.env.rank == 0:
            print(f"warning: {problem}; training goes on", flush=True)

    def _fill(self, path: Path, ranks: list[dict[str, Any]]) -> None:
        """Every file that a resume reads, under the names that transformers gives them."""
        self.model.save_pretrained(path)
        self.processing_class.save_pretrained(path)
        self._save_optimizer_and_scheduler(str(path))
        self._save_scaler(str(path))
        self.state.save_to_json(str(path / "trainer_state.json"))
        for rank, state in enumerate(ranks):
            name = "rng_state.pth" if len(ranks) == 1 else f"rng_state_{rank}.pth"
            (path / name).write_bytes(state.pop("rng"))
        (path / _RANKS).write_text(json.dumps(ranks))

    def _rank_state(self) -> dict[str, Any]:
        """This rank's random state, and the loss that was added up since the last log line."""
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            (file,) = Path(folder).iterdir()
            rng = file.read_bytes()
        return {
            "rng": rng,
            "loss_sum": self._tr_loss.item(),
            "loss_total": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
        }

    def begin(self) -> None:
        """Before the first step of this process: settle DDP, then take up what a resume needs."""
        self._settle_buckets()
        seed = self.cfg.seed + 1_000_003 * (self.env.rank + 1)  # else all ranks drop the same units
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        if self.resumed_from is None:
            return
        state: Any = self.state
        state.compute_steps(self.args, state.max_steps)  # the intervals of this config, not the saved ones
        ranks = json.loads((self.resumed_from / _RANKS).read_text())
        if len(ranks) != self.env.world_size:
            if self.env.rank == 0:
                print(f"note: saved by {len(ranks)} ranks, so this is no bit-exact continuation", flush=True)
            return
        mine = ranks[self.env.rank]
        self._tr_loss += mine["loss_sum"]
        self._total_loss_scalar = mine["loss_total"]
        self._globalstep_last_logged = mine["logged_step"]

    def _settle_buckets(self) -> None:
        """One forward and backward pass for nothing.

        DDP lays its gradient buckets out anew after the first backward pass. From three ranks on the layout
        decides the order of the sums, so the first step of a resume would round unlike the same step unbroken.
        """
        if not isinstance(self.model_wrapped, DistributedDataParallel):
            if self.env.world_size > 1:  # the ranks would train apart, and nothing would say so
                raise NexaError(
                    f"{self.env.world_size} ranks, but the model is a bare {type(self.model_wrapped).__name__}"
                )
            return
        wrapped: Any = self.model_wrapped
        tokens = torch.zeros(1, 8, dtype=torch.long, device=self.args.device)
        wrapped.train()
        wrapped(input_ids=tokens, labels=tokens).loss.backward()
        wrapped.zero_grad(set_to_none=True)


class _Steps(TrainerCallback):
    """Log lines on rank 0, and the stop that all ranks agree on at the end of a step."""

    def __init__(self, trainer: NexaTrainer) -> None:
        self._trainer = trainer
        self._since, self._from_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.begin()
        self._since, self._from_step = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.stop.agree() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.env.rank != 0:
            return
        trainer.tracker.log(state.global_step, logs)
        if "eval_loss" in logs and state.global_step < state.max_steps:
            print(f"step {state.global_step}/{state.max_steps} held-out loss {logs['eval_loss']:.4f}", flush=True)
        if "loss" not in logs:
            return
        now = time.monotonic()
        speed = (state.global_step - self._from_step) * trainer.step_tokens / (now - self._since)
        self._since, self._from_step = now, state.global_step
        print(
            f"step {state.global_step}/{state.max_steps} loss {logs['loss']:.4f}"
            f" lr {logs['learning_rate']:.1e} tok/s {speed:.0f}",
            flush=True,
        )


def _arguments(config: TrainConfig, env: RankEnv) -> TrainingArguments:
    cfg = config.trainer
    assert cfg is not None
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(env.run_dir),
        max_steps=cfg.steps,
        per_device_train_batch_size=cfg.batch_size,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=cfg.warmup_steps,
        weight_decay=cfg.weight_decay,
        bf16=cfg.precision == "bf16",
        seed=cfg.seed,
        data_seed=cfg.seed,
        logging_steps=cfg.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss of nan must be seen
        save_strategy="steps",
        save_steps=cfg.save_every,
        eval_strategy="steps" if cfg.eval_every else "no",
        eval_steps=cfg.eval_every,
        use_cpu=not cuda,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,  # every window counts the same number of tokens
        dataloader_drop_last=True,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        report_to="none",
    )
