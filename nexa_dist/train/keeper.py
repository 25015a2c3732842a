"""Rank 0's side of saving: the run's checkpoints, their durable copies, and `result.json`. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nexa_dist.train import checkpoint
from nexa_dist.train.env import RankEnv

KEEP = 2


class Keeper:
    """Saves into the run folder, then copies to the durable root; two whole checkpoints stay in each."""

    def __init__(self, env: RankEnv) -> None:
        self._env = env

    def save(self, step: int, fill: Callable[[Path], None]) -> None:
        """`fill(dir)` writes the files. Raises what the disk raises; the checkpoints before it stay."""
        meta = {"world_size": self._env.world_size, "run_id": self._env.run_id, "attempt": self._env.attempt}
        path = checkpoint.write(self._env.checkpoints, step, fill, meta)
        checkpoint.prune(self._env.checkpoints, KEEP)
        self._copy_to_durable(path)

    def adopt(self, path: Path) -> None:
        """Make a whole checkpoint, from wherever it is, one of this run's."""
        self._copy_to_durable(checkpoint.copy(path, self._env.checkpoints))

    def describe(self, step: int) -> dict[str, Any]:
        """path, step and sha256 of a saved checkpoint: the durable copy where there is one."""
        path = (self._env.durable or self._env.checkpoints) / f"step_{step:08d}"
        return {"path": str(path), "step": step, "sha256": checkpoint.digest(path)}

    def _copy_to_durable(self, path: Path) -> None:
        if self._env.durable is not None:
            checkpoint.copy(path, self._env.durable)
            checkpoint.prune(self._env.durable, KEEP)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """`result.json` of the run folder, for the manifest."""
        temp = self._env.run_dir / f".tmp-result-{os.getpid()}"
        temp.write_text(json.dumps(result, indent=1))
        os.rename(temp, self._env.run_dir / "result.json")
