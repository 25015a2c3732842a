"""The fence between attempts: what is of an older one writes no checkpoint. Standard library only.

The number of the newest attempt (its generation) lies in a file `generation`: in the run folder, written by the
node's agent, and beside the durable checkpoints, written by rank 0 before its first step. A writer looks at both
right before it renames a finished folder into place, and rank 0 takes away what older writers have half finished. So
one that was asleep between its look and its rename finds nothing left to rename.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.errors import NexaError

NAME = "generation"
_TEMP = re.compile(r"^\.tmp-(\d+)-")


class Superseded(NexaError):
    """A newer attempt of the run has begun: this process is a left-over."""


@dataclass(frozen=True)
class Fence:
    """`generation` of this attempt, 1-based."""

    generation: int = 0
    files: tuple[Path, ...] = ()

    def check(self) -> None:
        """Raise Superseded when any of the files names a newer generation."""
        for file in self.files:
            if (newest := read(file)) > self.generation:
                raise Superseded(
                    f"attempt {self.generation} may write no checkpoint any more: {file} says attempt {newest}",
                    hint="this process was left behind by an older attempt: end it",
                )

    def temp(self, root: Path, name: str) -> Path:
        """A name for something unfinished in `root` that tells whose it is."""
        return root / f".tmp-{self.generation}-{name}-{os.getpid()}"

    def discard(self, path: Path) -> None:
        """Remove a folder: first out of sight, so that nobody can rename it half removed, or find it so."""
        doomed = self.temp(path.parent, f"gone-{os.urandom(4).hex()}")
        with contextlib.suppress(FileNotFoundError):  # somebody else of this attempt is at it
            os.rename(path, doomed)
            shutil.rmtree(doomed)

    def sweep(self, root: Path) -> None:
        """Remove what writers of this attempt or an older one left in `root`; a newer one's is not ours."""
        for path in root.glob(".tmp-*"):
            owner = _TEMP.match(path.name)
            if owner is None or int(owner[1]) <= self.generation:
                self.discard(path)


OPEN = Fence()
"""Of one who belongs to no attempt: nothing is checked."""


def read(file: Path) -> int:
    """The generation that the file names; 0 when it is not there, cannot be read or names none.

    A durable folder that is out of reach does not keep a checkpoint off the node's own disk.
    """
    try:
        text = file.read_text(errors="replace").strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0


def raise_to(file: Path, generation: int) -> None:
    """Make the file name `generation`, whole or not at all; never a lower one than it names."""
    if read(file) >= generation:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_name(f".tmp-{generation}-{NAME}-{os.getpid()}")
    with open(temp, "w") as out:
        out.write(f"{generation}\n")
        out.flush()
        os.fsync(out.fileno())
    os.rename(temp, file)
