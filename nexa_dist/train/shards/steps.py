"""What folders of one run hold of each step, sharded or not. Standard library only."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.train import checkpoint
from nexa_dist.train.shards.cover import Cover, Part, cover, part_of


@dataclass(frozen=True)
class Held:
    """A step, and all folders of it that are here. `parts` are what the manifests of sharded ones say."""

    step: int
    folders: tuple[Path, ...]
    parts: dict[Path, Part]

    @property
    def missing(self) -> str:
        """Why the shards that are here are not all of the step; empty for all of them, and for a plain checkpoint."""
        found = cover(self.parts) if self.parts else ""
        return "" if isinstance(found, Cover) else found

    def is_whole(self) -> bool:
        """Reads and hashes every byte."""
        whole = [folder for folder in self.folders if not checkpoint.verify(folder)]
        if any(folder not in self.parts for folder in whole):
            return True
        return isinstance(cover({folder: self.parts[folder] for folder in whole}), Cover)


def held(roots: Sequence[Path]) -> list[Held]:
    """The steps in these folders of checkpoints, newest first, by their manifests alone."""
    folders: dict[int, list[Path]] = {}
    for root in roots:
        for step in checkpoint.steps(root):
            folders.setdefault(step, []).append(root / checkpoint.step_name(step))
    return [Held(step, tuple(folders[step]), _parts(folders[step])) for step in sorted(folders, reverse=True)]


def _parts(folders: Sequence[Path]) -> dict[Path, Part]:
    found = {}
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # damaged: whole by itself it is not
            manifest = checkpoint.manifest(folder)
            try:
                part = part_of(manifest)
            except (KeyError, TypeError, AttributeError):
                part = Part("", 0, 1, frozenset())
            if part:
                found[folder] = part
    return found
