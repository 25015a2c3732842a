"""Rank 0's side of saving: the run's checkpoints, their durable copies, and `result.json`. No torch here."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nexa_dist.train import checkpoint, progress
from nexa_dist.train.durable import Durable, Uploader
from nexa_dist.train.env import RankEnv

KEEP = 2


class Keeper:
    """Saves into the run folder, then uploads to the durable store meanwhile; two whole ones stay in each.

    Only rank 0 makes one; of sharded checkpoints (shard_keeper.py) the first rank of each node. `begin` comes before
    the first step, `finish` or `stopped` after the last. Every call may raise fence.Superseded: a newer attempt of the
    run has begun, and this process is to end.
    """

    def __init__(self, env: RankEnv, durable: Durable | None = None) -> None:
        self._env = env
        self._durable = durable or Durable(env, KEEP)
        self._uploader = Uploader(self._durable)
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved: tuple[int, Path] | None = None
        self.saved_at = 0.0
        """time.monotonic() at which the newest checkpoint was whole."""
        self.pending: int | None = None
        """Step of the background save whose end nobody has asked for yet."""

    def begin(self, step: int = 0) -> None:
        """Lock older attempts out of every place; `step` is where this one starts (0: from nothing)."""
        self._env.fence.check()
        if self._env.checkpoints.is_dir():
            self._env.fence.sweep(self._env.checkpoints)
        progress.note(saved=step or None, durable=None, saving=False)
        self._uploader.enter()
        if not self._durable.in_bucket:  # asking a bucket takes seconds, which the first steps need not wait for
            self._uploader.wait(self._env.durable_wait_s)

    def save(self, step: int, fill: Callable[[Path], None]) -> None:
        """`fill(dir)` writes the files. Raises what the disk raises; the checkpoints before it stay."""
        self.settle()
        self._write(step, fill)

    def save_later(self, step: int, fill: Callable[[Path], None]) -> None:
        """Like `save`, in a thread: `fill` may read only what nobody changes. One at a time.

        An error of the save before comes up here, or in `settle`; then nothing was begun.
        """
        self.settle()
        self._uploader.check()
        self.pending = step
        self._writer = threading.Thread(target=self._try_to_write, args=(step, fill), daemon=True, name="save")
        self._writer.start()

    def settle(self) -> None:
        """Wait for the background save, and raise what it raised."""
        if self._writer is not None:
            self._writer.join()
        self._writer, error, self._error = None, self._error, None
        self.pending = None
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise Superseded when an upload found a newer attempt."""
        self._uploader.check()

    def _try_to_write(self, step: int, fill: Callable[[Path], None]) -> None:
        try:
            self._write(step, fill)
        except BaseException as err:  # handed to the main thread, which asks for it
            self._error = err

    def _write(self, step: int, fill: Callable[[Path], None]) -> None:
        progress.note(saving=True)
        try:
            meta = {"world_size": self._env.world_size, "run_id": self._env.run_id, "attempt": self._env.attempt}
            path = checkpoint.write(self._env.checkpoints, step, fill, meta, self._env.fence)
        finally:
            progress.note(saving=False)
        self.is_saved(step, path)

    def adopt(self, path: Path) -> None:
        """Make a whole checkpoint, from wherever it is, one of this run's."""
        own = checkpoint.copy(path, self._env.checkpoints, self._env.fence)
        self.is_saved(int(checkpoint.manifest(own)["step"]), own)

    def is_saved(self, step: int, path: Path) -> None:
        """A checkpoint is whole: its upload begins."""
        self._saved, self.saved_at = (step, path), time.monotonic()
        progress.note(saved=step)
        self._uploader.offer(step, path, self._prune)

    def _prune(self) -> None:
        checkpoint.prune(self._env.checkpoints, KEEP, self._env.fence)

    def finish(self) -> str:
        """Wait for the saves and for the upload, which is tried once more if it failed. What came of it, in words."""
        self.settle()
        if self._saved is None:
            return "nothing was saved"
        if not self._durable.exists:
            self._uploader.wait(self._env.durable_wait_s)
            return "no durable store"
        step, path = self._saved
        began = time.monotonic()
        end = began + self._env.durable_wait_s
        in_time = self._uploader.wait(end - time.monotonic())
        if in_time and self._uploader.done_step != step:
            self._uploader.offer(step, path, self._prune)
            in_time = self._uploader.wait(end - time.monotonic())
        if not in_time:
            self._uploader.give_up()
        if self._uploader.done_step != step:
            late = "" if in_time else f" within {self._env.durable_wait_s:g} s"
            return f"step {step} did not reach the durable store{late}; it is in {path}"
        return f"step {step} is durable, waited {time.monotonic() - began:.2f} s"

    def stopped(self, step: int, signal_at: float) -> str:
        """`finish`, and the line that a stop by SIGTERM ends with. `signal_at` is of time.monotonic()."""
        said = self.finish()
        line = f"stopped by SIGTERM at step {step}, checkpoint saved {self.saved_at - signal_at:.2f} s after the signal"
        if self._saved is not None and self._uploader.done_step == self._saved[0]:
            return f"{line}, durable {self._uploader.done_at - signal_at:.2f} s after it"
        return f"{line}; {said}"

    def describe(self, step: int) -> dict[str, Any]:
        """path, step and sha256 of a saved checkpoint: the durable copy where there is one; `uri` in a bucket."""
        roots = [root for root in (self._env.durable, self._env.checkpoints) if root is not None]
        paths = [root / f"step_{step:08d}" for root in roots]
        path = next((path for path in paths if path.is_dir()), paths[-1])
        uri = self._durable.uri(step) if self._uploader.done_step == step else None
        found = {"path": str(path), "step": step, "sha256": checkpoint.digest(path)}
        return {**found, "uri": uri} if uri else found

    def write_result(self, result: Mapping[str, Any]) -> None:
        """`result.json` of the run folder, for the manifest."""
        self._env.fence.check()
        temp = self._env.run_dir / f".tmp-result-{os.getpid()}"
        temp.write_text(json.dumps(result, indent=1))
        os.rename(temp, self._env.run_dir / "result.json")
