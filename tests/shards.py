"""One node's folder of a sharded checkpoint, without the ranks that would write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nexa_dist.train import checkpoint
from nexa_dist.train.shards.cover import describe

NAMES = ("a_0", "a_1", "b_2", "b_3")
"""What ranks 0 and 1 of the first node write, and ranks 2 and 3 of the second."""


def write(root: Path, names: Sequence[str], step: int = 40, text: str = "x", attempt: int = 1) -> Path:
    """Files of `names` in a node's `root`, of a save that has all of NAMES."""

    def fill(files: Sequence[str]) -> Callable[[Path], None]:
        return lambda path: [(path / name).write_text(name + text) for name in files] and None

    whole = checkpoint.write(root / "all", step, fill(NAMES), {})
    of = checkpoint.manifest(whole)["files"]
    for path in (*whole.iterdir(),):
        path.unlink()
    whole.rmdir(), whole.parent.rmdir()
    meta = {"run_id": "r", "attempt": attempt, "shards": describe(step, of, [NAMES[:2], NAMES[2:]], [2, 2])}
    return checkpoint.write(root, step, fill(names), meta)
