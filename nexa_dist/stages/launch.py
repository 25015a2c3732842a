"""A stage as a run of a cluster: what its ranks start, what is brought to them, and what comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.stages.contract import StageConfig
from nexa_dist.stages.load import load_stage
from nexa_dist.stages.references import find_root, resolve
from nexa_dist.stages.table import STAGES

OUTPUT = "stage_output"
"""Folder of a stage's output in the working folder of its run; it comes back to runs/RUN/outputs/."""


def load_as_training(path: Path, overrides: Sequence[str] = (), given: Mapping[str, str] | None = None) -> TrainConfig:
    """The training that `nexa run stage.yaml` starts. `given` replaces or adds inputs. Raises NexaError."""
    config, root = load_stage(path, overrides), find_root()
    inputs = {name: resolve(reference, root, f"inputs.{name}")
              for name, reference in {**config.inputs, **(given or {})}.items()}  # fmt: skip
    return as_training(config, path, overrides, inputs, root)


def as_training(
    config: StageConfig, path: Path, overrides: Sequence[str], inputs: Mapping[str, Path], root: Path
) -> TrainConfig:
    """The same with its inputs as paths of this machine, which every node gets as data."""
    try:
        file = path.absolute().resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise UsageError(
            f"{path} lies outside of the project, so it is not sent ({root})", hint="move it into the project"
        ) from None
    words = ["--config", file, "--output", OUTPUT]
    for override in overrides:
        words += ["--set", override]
    launch = config.launch
    return TrainConfig.model_validate(
        {
            **launch.model_dump(exclude={"files"}),
            "name": config.name,
            "stage": config.stage,
            "module": STAGES[config.stage],
            "args": tuple(words),
            "files": (*launch.files, file),
            "data": {name: os.fspath(place) for name, place in inputs.items()},
            "outputs": (OUTPUT,),
            "environment": config.environment,
        }
    )
