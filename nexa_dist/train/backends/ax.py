"""Backend `ax`: Axolotl trains by the user's own YAML, under our launcher, with our stop and our checkpoints.

With DDP (LoRA, QLoRA, full weights) rank 0 saves for all, as backend hf does. Where the YAML asks for DeepSpeed or FSDP
every rank saves its part: see ax_parted.py.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import agree, control, progress
from nexa_dist.train.backends import ax_setup, ds_engine, ds_ops
from nexa_dist.train.backends.ax_parted import Parted
from nexa_dist.train.backends.ax_setup import axolotl
from nexa_dist.train.backends.hf import Replicated
from nexa_dist.train.backends.parallel import Parallel, settle
from nexa_dist.train.env import RankEnv
from nexa_dist.train.tracking import Tracker

OWN_SEED = 42
"""Axolotl's, where its file has none."""
NOT_OF_TEXT = ("rl", "reward_model", "process_reward_model", "is_multimodal")
"""Keys of Axolotl's under which a model may not learn from tokens alone."""


def prepare(config: TrainConfig, env: RankEnv) -> None:
    """`axolotl preprocess`, once a node: the ranks find the data tokenized in $NEXA_SHARED/data."""
    cfg = ax_setup.load(config, env, prepares=True)
    axolotl("cli.preprocess").do_preprocess(cfg, axolotl("cli.args").PreprocessCliArgs(download=False))


def train(config: TrainConfig, env: RankEnv) -> int:
    """Train this rank to the end, or to a SIGTERM. Returns the exit code: 0, or 143 after a stop."""
    stop = control.StopSignal()
    control.join(env)
    data = ax_setup.data(config)
    hint = "the files of the data sets or of the tokenizer are not the same on every node"
    agree.check_same("the dataset", control.gather(data.sha256), hint)
    kind = ax_setup.parts(config)
    if kind == "ZeRO":
        ds_ops.choose_accelerator(env)
    parallel: Parallel = Parted(env, kind) if kind else Replicated(env)
    point = parallel.start(env)
    cfg = ax_setup.load(config, env)
    parallel.keeper.begin(point[0] if point else 0)
    tracker = Tracker(config, env)
    try:
        code = Run(cfg, env, stop, tracker, parallel, data).run(point)
    finally:
        tracker.close()
    control.leave()
    return code


class Run:
    """One training: Axolotl's own trainer, whose saving and end are ours."""

    def __init__(
        self,
        cfg: Any,
        env: RankEnv,
        stop: control.StopSignal,
        tracker: Tracker,
        parallel: Parallel,
        data: ax_setup.Data,
    ) -> None:
        self.cfg, self.env, self.stop, self.tracker, self.parallel, self.data = cfg, env, stop, tracker, parallel, data
        sets, training = axolotl("common.datasets"), axolotl("train")
        meta = (sets.load_preference_datasets if cfg.rl else sets.load_datasets)(cfg=cfg)
        # Axolotl seeds nothing before it makes adapters and new tokens: each process would begin with its own.
        set_seed(OWN_SEED if cfg.seed is None else cfg.seed)
        self.trainer, self.model, self.tokenizer, *_ = training.setup_model_and_trainer(cfg, meta)
        training.handle_untrained_tokens_fix(cfg, self.model, self.tokenizer, meta.train_dataset)
        self.trainer.cfg = SimpleNamespace(async_save=False)  # which hf's saving reads of a trainer
        self.trainer._save_checkpoint = self.save
        self.trainer.evaluate = _apart(self.trainer.evaluate)
        for kind in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(kind)
        self.trainer.add_callback(_Steps(self))
        self.resumed_from: Path | None = None
        self.saved = -1
        self.became: dict[str, Any] = {}

    @property
    def ended(self) -> bool:
        return bool(self.trainer.state.global_step >= self.trainer.state.max_steps)

    def run(self, point: tuple[int, Path] | None) -> int:
        first, self.resumed_from = point or (0, None)
        if point and self.env.rank == 0:
            print(f"resuming from step {first} of {self.resumed_from}", flush=True)
        self.saved = first if point else -1
        if point:  # Axolotl evaluates before the first step, to show what is untrained
            self.trainer.args.eval_on_start = False
        source = self.resumed_from
        if source and (own := source / f"checkpoint-{first}").is_dir():  # of Parted
            source = own
            for callback in self.trainer.callback_handler.callbacks:
                if hasattr(callback, "resume_from_checkpoint"):  # Axolotl's count of tokens
                    callback.resume_from_checkpoint = str(own)
        started = time.monotonic()
        with contextlib.suppress(NothingLeft):
            axolotl("train").execute_training(self.cfg, self.trainer, str(source) if source else None)
        step = self.trainer.state.global_step
        if self.stop.agreed and not self.ended:
            self.parallel.keeper.stopped(step, self.stop.at or started)
            return control.EXIT_STOPPED
        train_s = time.monotonic() - started
        self.save(self.model, None, last=True)  # where it ended early by a rule of the file
        self._finish(first, train_s)
        return 0

    def save(self, _model: Any, _trial: Any, *, last: bool = False) -> None:
        """In place of the Trainer's own."""
        step = self.trainer.state.global_step
        if step != self.saved:  # the end of an epoch may be the last step too
            self.trainer.store_flos()
            self.parallel.save(self.trainer, last=last or self.stop.agreed or self.ended)
            self.saved = step

    def begin(self) -> None:
        """Before the first step, with the model as the Trainer wrapped it."""
        self.became = spread(self.cfg, self.trainer, self.env)
        if "sharding" in self.became:
            engine = self.trainer.model_wrapped
            ds_engine.keep_errors(engine)
            # ZeRO-2 gathers into a tensor that has a gradient, which gloo does not in autograd's sight.
            engine.optimizer.step = torch.no_grad()(engine.optimizer.step)
        if self.became["parallel"] == "DDP" and tokens_reach_all(self.cfg, self.trainer.model):
            settle(self.trainer)
        if self.resumed_from is not None:
            self.parallel.resume(self.trainer, self.resumed_from)
        if self.env.rank == 0:
            count, trained = (self.became[name] for name in ("parameters", "trainable_parameters"))
            print(
                f"model {count} parameters, {trained} trained, {self.became['parallel']}, {self.env.world_size} ranks",
                flush=True,
            )
        progress.report(self.trainer.state.global_step, self.trainer.state.max_steps)

    def _finish(self, first: int, train_s: float) -> None:
        state = self.trainer.state
        nothing = self.resumed_from if state.global_step == first else None
        saved = self.parallel.keeper.finish(state.global_step, nothing)
        if self.cfg.fsdp_config:  # else each rank would leave its part
            self.cfg.fsdp_config.final_state_dict_type = "FULL_STATE_DICT"
        axolotl("train").save_trained_model(self.cfg, self.trainer, self.model)
        if self.env.rank != 0:
            return
        self.tokenizer.save_pretrained(self.cfg.output_dir)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        held_out = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        report = {"steps": state.global_step, "train_s": round(train_s, 3), **self.became}
        kinds: dict[str, Any] = {name: self.became[name] for name in ("parallel", "sharding") if name in self.became}
        report |= {"train_loss_first": losses[0], "train_loss_last": losses[-1]} if losses else {}
        report |= {"eval_loss_nats": held_out[-1]} if held_out else {}
        self.parallel.keeper.write_result(
            {
                "model": self.cfg.base_model,
                "dataset": {"path": self.data.path, "sha256": self.data.sha256, "bytes": self.data.bytes},
                "checkpoint": saved,
                "eval_report": {name: value for name, value in report.items() if name not in kinds},
                **kinds,
                "wandb_run_id": self.tracker.run_id,
            }
        )
        print(f"trained {train_s:.1f} s; the model is in {self.cfg.output_dir}", flush=True)


def spread(cfg: Any, trainer: Any, env: RankEnv) -> dict[str, Any]:
    """What the model really became: `parallel`, and parameters of all, those that are trained, those on each rank; of
    DeepSpeed `sharding`. Raises NexaError where it is not what the file asks for."""
    wrapped, model = trainer.model_wrapped, trainer.model
    parameters = list(model.parameters())
    if isinstance(wrapped, DistributedDataParallel):
        kind = "DDP"
    elif type(wrapped).__name__ == "DeepSpeedEngine":
        kind = f"ZeRO-{wrapped.zero_optimization_stage()}"
    elif any(isinstance(one, DTensor) for one in parameters):
        kind = "FSDP2"
    else:
        kind = {"FullyShardedDataParallel": "FSDP1"}.get(type(wrapped).__name__, "none")
    asked = "ZeRO" if cfg.deepspeed else "FSDP" if cfg.fsdp_config or cfg.fsdp else ""
    if (asked and not kind.startswith(asked)) or (kind == "none" and env.world_size > 1):
        words = f"{asked or 'DDP'} over {env.world_size} ranks was asked for"
        raise NexaError(f"{words}, and the model is a {type(wrapped).__name__}")
    trained, count = model.get_nb_trainable_parameters() if hasattr(model, "peft_config") else _counted(parameters)
    held = control.gather(sum(_here(one) for one in parameters))
    if kind in ("FSDP2", "ZeRO-3") and env.world_size > 1 and max(held) >= count:
        raise NexaError(f"{kind} was asked for, and a rank holds all {count} parameters: {held}")
    became = {"parallel": kind, "adapter": cfg.adapter or "none", "parameters": count, "trainable_parameters": trained}
    if asked == "ZeRO":
        file = cfg.deepspeed if isinstance(cfg.deepspeed, dict) else json.loads(Path(cfg.deepspeed).read_text())
        whole = count if kind == "ZeRO-3" else trained
        became["sharding"] = ds_engine.describe(wrapped, file["zero_optimization"], whole)
    return {**became, "local_parameters": held}


def _apart(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """An evaluation that costs training no random number: a stop in its place leaves it out."""

    def evaluated(*args: Any, **named: Any) -> Any:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            return evaluate(*args, **named)

    return evaluated


def _here(one: Any) -> int:
    """How many elements of a parameter this rank holds."""
    mine = one.to_local() if isinstance(one, DTensor) else getattr(one, "ds_tensor", one)
    return int(mine.numel())


def tokens_reach_all(cfg: Any, model: Any) -> bool:
    """Whether a few tokens with their labels, as `settle` gives them, are a batch that each trained weight has a part
    in: DDP fails in the next one where not."""
    told = vars(model.config).items()  # where transformers 5 also notes, of any model, how experts would be computed
    experts = any("experts" in name and not name.startswith("_") and value for name, value in told)
    return not (experts or any(cfg.get(name) for name in NOT_OF_TEXT) or (cfg.context_parallel_size or 1) > 1)


def _counted(parameters: list[Any]) -> tuple[int, int]:
    sizes = [(getattr(one, "ds_numel", one.numel()), one.requires_grad) for one in parameters]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


class NothingLeft(Exception):
    """A training that is taken up at its last step: the Trainer itself would make one more."""


class _Steps(TrainerCallback):
    """Log lines on rank 0, and the stop that all ranks agree on at the end of a step."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run.ended:
            raise NothingLeft

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        progress.report(state.global_step, state.max_steps)
        if self._run.stop.agree() and not self._run.ended:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        elif self._run.ended:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        run, step = self._run, state.global_step
        figures = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        run.tracker.log(step, figures)
        loss, held_out, rate = (figures.get(name) for name in ("loss", "eval_loss", "learning_rate"))
        progress.report(step, state.max_steps, loss, learning_rate=rate, held_out=held_out)
        if run.env.rank == 0 and loss is not None:
            print(f"step {step}/{state.max_steps} loss {loss:.4f} lr {rate or 0.0:.3e}", flush=True)
        if run.env.rank == 0 and held_out is not None:
            print(f"step {step}/{state.max_steps} held-out loss {held_out:.4f}", flush=True)
