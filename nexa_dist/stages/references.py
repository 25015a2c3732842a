"""What `inputs:` of a stage names, as a path of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from nexa_dist.errors import UsageError
from nexa_dist.stages.registry import FOLDER, Registry


def find_root(start: Path | None = None) -> Path:
    """The workspace: NEXA_WORKSPACE, else the nearest folder upwards that has a registry or runs, else this one."""
    if named := os.environ.get("NEXA_WORKSPACE"):
        return Path(named).absolute()
    here = (start or Path.cwd()).absolute()
    marks = (f"{FOLDER}/registry.jsonl", ".nexa", "runs")
    return next((one for one in (here, *here.parents) if any((one / mark).exists() for mark in marks)), here)


def resolve(reference: str, root: Path, key: str) -> Path:
    """The file or folder that is meant: data:NAME[@vN][/FOLDER] (its bytes are checked), run:RUN, or a path. Raises
    UsageError; `key` is what the message names."""
    kind, colon, rest = reference.partition(":")
    if colon and kind == "data":
        version, _, within = rest.partition("/")
        place = Registry(root).verified(version) / within
        if not place.exists():
            raise UsageError(f"{key}: {version} has no {within}", hint=f"nexa data show {version} lists what it has")
        return place
    if colon and kind == "run":
        return checkpoint_of(root, rest, key)
    if colon and kind == "stage":
        raise UsageError(f"{key}: {reference} has a meaning in a pipeline alone", hint="nexa pipeline run FILE")
    path = Path(os.path.expandvars(os.path.expanduser(reference)))
    if not path.exists():
        raise UsageError(f"{key}: {path} is not there", hint="paths are relative to the folder that nexa is called in")
    return path.absolute()


def model_in(place: Path, key: str) -> Path:
    """The folder with config.json of a checkpoint or a training's output: itself, or `model/` of one in shards. Raises
    UsageError; `key` is what the message names."""
    places = (place, place / "model", place / "checkpoint", place / "checkpoint" / "model")
    if found := next((one for one in places if (one / "config.json").is_file()), None):
        return found
    adapter = any((one / "adapter_config.json").is_file() for one in places)
    raise UsageError(
        f"{key}: {place} has no config.json, so transformers cannot load it",
        hint="merge the adapter into its model first" if adapter
        else "run:RUN names a run's checkpoint; a path is a folder that save_pretrained made",
    )  # fmt: skip


def checkpoint_of(root: Path, run: str, key: str) -> Path:
    """The newest checkpoint of a run that is on this machine: where it trained here, or where nexa pull put it."""
    folder = root / "runs" / run
    found = sorted((folder / "checkpoints").glob("step_*")) or sorted(folder.glob("step_*"))
    whole = [one for one in found if (one / "manifest.json").exists()]
    if not whole:
        raise UsageError(f"{key}: no checkpoint of run {run} is in {folder}", hint=f"nexa pull {run} brings it here")
    return whole[-1]
