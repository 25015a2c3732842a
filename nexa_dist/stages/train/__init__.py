"""The stage train of a pipeline on one machine: a train.yaml of a backend, whose newest checkpoint is the output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import EXIT_OK, NexaError, UsageError
from nexa_dist.run import files
from nexa_dist.stages.contract import EXIT_STOPPED
from nexa_dist.stages.output import Output, Told, made
from nexa_dist.stages.whole import remove, whole
from nexa_dist.train import checkpoint

FORMAT = 1
CHECKPOINT = "checkpoint"
"""Folder of the checkpoint in the output."""
OPERATION = {
    "name", "data", "tags", "experiment", "nodes", "max_hours", "budget_usd", "launcher", "preload", "replicas",
    "hang_timeout_s", "on_disconnect", "restarts_per_hour", "min_nodes", "wait_for_nodes_minutes", "lost_after_s",
    "wandb", "secrets", "outputs", "files", "profile", "install", "apt", "setup", "environment",
}  # fmt: skip
"""Keys of train.yaml that the weights do not follow from."""


def told_of(config: TrainConfig, references: Mapping[str, str]) -> Told:
    """What the manifest says of a training. Raises UsageError for a program whose checkpoints nobody knows."""
    if config.backend is None:
        what = "script" if config.script else "program"
        hint = "nexa run starts any program; a stage knows the checkpoints of hf, acc, ds and ax"
        raise UsageError(f"{config.name} is a {what}, and a stage of a pipeline needs a backend", hint=hint)
    identity = config.model_dump(mode="json", exclude=OPERATION)
    return Told("train", config.name, dict(references), identity, config.model_dump(mode="json"), FORMAT)


def work(path: Path, overrides: Sequence[str], inputs: Mapping[str, Path], folder: Path, told: Told) -> int:
    """Train, or go on from the newest checkpoint. Returns the exit code."""

    def do(output: Output) -> int:
        if (code := _trained(path, overrides, inputs, output.folder)) == EXIT_OK:
            _taken(output)
        return code

    return made(told, inputs, folder, do)


def overrides_of(inputs: Mapping[str, Path]) -> list[str]:
    """The `--set` words by which a train.yaml knows its inputs."""
    return [f"data.{name}={place}" for name, place in inputs.items()]


def _trained(path: Path, overrides: Sequence[str], inputs: Mapping[str, Path], folder: Path) -> int:
    data = folder / ".data"
    remove(data)
    data.mkdir()
    for name, place in inputs.items():
        (data / name).symlink_to(place.absolute())
    config = load_train(path, [*overrides, *overrides_of(inputs)])
    words = ["-m", "nexa_dist.train.launcher", "--backend", str(config.backend), "--config", str(path)]
    for override in (*overrides, *overrides_of(inputs)):
        words += ["--set", override]
    many = config.nproc_per_node or 1
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={many}"] if many > 1 else []
    env = {**os.environ, "NEXA_RUN_DIR": str(folder / ".run"), "NEXA_DATA": str(data), "NEXA_RUN_ID": config.name}
    for argv in ([*words, "--prepare"], [*torchrun, *words]):
        if code := _ran(argv, env):
            return code
    return EXIT_OK


def _ran(argv: Sequence[str], env: Mapping[str, str]) -> int:
    return _ended(subprocess.Popen([sys.executable, *argv], env=env))


def _ended(child: subprocess.Popen[bytes]) -> int:
    """Exit code of a program that gets our SIGTERM, with time for a checkpoint."""
    told: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        told.append(number)
        child.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_STOPPED if told and code else code if code >= 0 else 128 - code


def _taken(output: Output) -> None:
    """The newest checkpoint becomes the output."""
    found = checkpoint.newest_whole(output.folder / ".run" / "checkpoints")
    if found is None:
        raise NexaError(f"the training left no checkpoint in {output.folder}/.run")
    step, source = found
    take(source, output.folder)
    result = output.folder / ".run" / "result.json"
    loss = files.read_object(result).get("eval_report") if result.exists() else None
    output.note(counts={"step": step}, eval_report=loss)


def take(source: Path, folder: Path) -> None:
    """Put a checkpoint into an output, as links: nothing is copied, and a kill loses nothing."""
    if not (folder / CHECKPOINT).exists():
        with whole(folder / CHECKPOINT) as scratch:
            for name in checkpoint.names(source):
                checkpoint.link(source / name, scratch / name)
