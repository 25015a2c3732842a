"""Record of what was brought here of a run, and where: runs/<run>/pulled.json. A file counts as long as it lies
there."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from nexa_dist.errors import NexaError
from nexa_dist.plan.runs.results import Wrote
from nexa_dist.run import files
from nexa_dist.run.workspace import RunFolder, loaded
from nexa_dist.shape import BEYOND, whole
from nexa_dist.train import checkpoint

NAME = "pulled.json"


@dataclass(frozen=True)
class File:
    """A file of a node as it was there, and its place below `outputs/`."""

    bytes: int
    mtime_ns: Annotated[int, whole(0, BEYOND)]
    sha256: str
    into: str


@dataclass(frozen=True)
class Place:
    """Contents that came into one folder: checkpoints by step, with their checkpoint.identity, and files by node and
    name."""

    checkpoints: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, File]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pulled:
    """Contents of all folders, by their absolute paths."""

    places: dict[str, Place] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunFolder) -> Pulled:
        """Empty where nothing was brought, or the file is damaged: what it names can be brought again."""
        try:
            return loaded(run.path / NAME, cls)
        except NexaError:
            return cls()

    def save(self, run: RunFolder) -> None:
        files.write_json(run.path / NAME, asdict(self))

    def at(self, folder: Path) -> Place:
        return self.places.setdefault(str(folder), Place())

    def holds_file(self, row: Wrote) -> bool:
        """Tell whether a file is here as it is on the node."""
        return any(holds(Path(folder), place, row) for folder, place in self.places.items())

    def holds_step(self, step: int, sha256: str) -> bool:
        """Tell whether a checkpoint is here that was found whole."""
        known = (folder for folder, place in self.places.items() if place.checkpoints.get(str(step)) == sha256)
        return any(_is_there(step_in(Path(folder), step), sha256) for folder in known)


def holds(folder: Path, place: Place, row: Wrote) -> bool:
    """Tell whether this folder has a file as it is on the node."""
    known = place.files.get(row.node, {}).get(row.name)
    if known is None or (known.bytes, known.mtime_ns) != (row.bytes, row.mtime_ns):
        return False
    path = folder / "outputs" / known.into
    return path.is_file() and path.stat().st_size == known.bytes


def step_in(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:08d}"


def _is_there(path: Path, sha256: str) -> bool:
    """Sizes are looked at, nothing is hashed."""
    try:
        told: dict[str, Any] = files.read_object(path / "manifest.json")
        sizes = {name: want["bytes"] for name, want in told["files"].items()}
        return checkpoint.identity(told) == sha256 and all(
            (path / n).stat().st_size == size for n, size in sizes.items()
        )
    except (NexaError, OSError, KeyError, TypeError, AttributeError):
        return False


def put_aside(path: Path) -> None:
    """Gives what lies there, if anything does, a name that nothing has yet."""
    free = path
    while os.path.lexists(free):
        free = free.with_name(f"{free.name}~")
    if free != path:
        path.rename(free)
