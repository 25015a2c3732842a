"""A stage as a run of a cluster: what its ranks start, what is brought to them, and what comes back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from nexa_dist import wire
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import files
from nexa_dist.shape import anything, maybe, number, record, table, text, whole
from nexa_dist.stages.contract import StageConfig
from nexa_dist.stages.load import load_stage
from nexa_dist.stages.references import find_root, resolve
from nexa_dist.stages.registry import DIGITS, FOLDER, Registry, Version
from nexa_dist.stages.whole import MANIFEST, hashes, tree_sha256

OUTPUT = "stage_output"
"""Folder of a stage's output in the working folder of its run; it comes back to runs/RUN/outputs/."""

_FACTS = table(text(256), anything(8, 10_000), 10_000)
MADE = record(
    {
        "name": text(32, "[a-z0-9-]+"), "stage": text(32, "[a-z]+"), "key": wire.SHA256,
        "inputs": table(text(256), record({"reference": text(), "sha256": wire.SHA256}), 1000),
        "outputs": record({
            "sha256": wire.SHA256, "bytes": whole(),
            "files": table(wire.INSIDE, record({"bytes": whole(), "sha256": wire.SHA256}), 1 << 20),
        }),
    },
    {"usd": maybe(number(0.0)), "counts": _FACTS, "schema": _FACTS},
)  # fmt: skip
"""What is read of a manifest that a node wrote: it names files and folders of this machine."""


def load_as_training(path: Path, overrides: Sequence[str] = (), root: Path | None = None) -> TrainConfig:
    """The training that `nexa run stage.yaml` starts; `root` is the workspace. Raises NexaError."""
    config, root = load_stage(path, overrides), root or find_root()
    inputs = {name: resolve(of, root, f"inputs.{name}") for name, of in config.inputs.items()}
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
    for name, reference in config.inputs.items():  # as the manifest is to name them; the node finds each by its name
        words += ["--set", f"inputs.{name}={reference}"]
    for override in overrides:
        words += ["--set", override]
    launch = config.launch
    return TrainConfig.model_validate(
        {
            **launch.model_dump(exclude={"files"}),
            "name": config.name,
            "stage": config.stage,
            "module": f"nexa_dist.stages.{config.stage}",
            "args": tuple(words),
            "files": (*launch.files, file),
            "data": {name: os.fspath(place) for name, place in inputs.items()},
            "outputs": (OUTPUT,),
            "environment": config.environment,
        }
    )


def registered(root: Path, outputs: Path, usd: float) -> Version | None:
    """The version that a run's outputs became, copied to its place; None where no whole stage's output is among them.
    `usd` is what the nodes cost. Raises NexaError when its bytes are not what its manifest says."""
    source = outputs / OUTPUT
    if not (source / MANIFEST).exists():
        return None
    told, made = files.read_object(source / MANIFEST), files.read_shape(source / MANIFEST, MADE)
    found = hashes(source)
    if found != made["outputs"]["files"] or tree_sha256(found) != made["outputs"]["sha256"]:
        raise NexaError(f"{source} has other bytes than its manifest says", hint="nexa pull brings it again")
    folder = root / FOLDER / "work" / f"{told['key'][:DIGITS]}-{outputs.parent.name}"
    for name in found:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    files.write_json(folder / MANIFEST, {**told, "usd": round(usd + float(told.get("usd") or 0.0), 6)})
    return Registry(root).add(folder)
