"""Rank 0's way to what outlives the node: a folder, a bucket (through run_sync.sh), or both. No torch here.

One upload at a time, in a thread. The next save waits for the one before it, so the durable store is never more than
one checkpoint behind unless uploads fail; a failed one is a warning, and the next save brings a newer checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.train import checkpoint, fence, progress
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded

EXIT_SUPERSEDED = 3
"""run_sync.sh: the bucket knows a newer generation."""


class Durable:
    """The stores of one run. Calls block; `abort` may come from another thread."""

    def __init__(self, env: RankEnv, keep: int) -> None:
        self._env, self._keep = env, keep
        self._child: subprocess.Popen[str] | None = None
        self._lock, self._over = threading.Lock(), False
        self.in_bucket = env.bucket is not None and env.sync is not None

    @property
    def exists(self) -> bool:
        return self._env.durable is not None or self.in_bucket

    def enter(self) -> int | None:
        """Raise the generation in every store to ours; the newest step that all of them have. No file is hashed.

        Raises Superseded when a store knows a newer one, NexaError or OSError when it cannot be reached.
        """
        newest: list[int] = []
        if self._env.durable is not None:
            newest.append(self._enter_folder())
        if self.in_bucket:
            answer = self._sync("fence", self._env.run_id, str(self._env.attempt))
            newest.append(json.loads(answer)["step"] or 0)
        return min(newest, default=0) or None

    def _enter_folder(self) -> int:
        root = self._env.durable
        assert root is not None
        self._env.fence.check()
        fence.raise_to(root.parent / fence.NAME, self._env.attempt)
        if root.is_dir():
            self._env.fence.sweep(root)
        return checkpoint.newest_named(root) or 0

    def put(self, path: Path) -> None:
        """A whole checkpoint into every store. Raises what `enter` raises."""
        if self._env.durable is not None:
            self._put_folder(path)
        if self.in_bucket:
            self._sync("push", self._env.run_id, str(path))

    def _put_folder(self, path: Path) -> None:
        root = self._env.durable
        assert root is not None
        checkpoint.copy(path, root, self._env.fence)
        checkpoint.prune(root, self._keep, self._env.fence)

    def uri(self, step: int) -> str | None:
        """Address at which run_sync.sh puts our checkpoint of a step; None without a bucket."""
        place = f"{self._env.run_id}/checkpoints/step_{step:08d}/g{self._env.attempt:06d}"
        return f"{str(self._env.bucket).rstrip('/')}/{place}" if self.in_bucket else None

    def abort(self) -> None:
        """End a transfer that is under way, with its children; none begins any more."""
        with self._lock:  # one that is just being started is ended too
            self._over, child = True, self._child
        if child is not None and child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _sync(self, *words: str) -> str:
        """What run_sync.sh answers on standard output; its standard error is ours."""
        settings = {
            "NEXA_PYTHON": os.environ.get("NEXA_PYTHON", sys.executable),
            "NEXA_ATTEMPT": str(self._env.attempt),
        }
        with self._lock:
            if self._over:
                raise NexaError(f"{self._env.bucket}: there was no time left for it")
            child = self._child = subprocess.Popen(
                ["bash", str(self._env.sync), *words],
                env={**os.environ, **settings, "NEXA_BUCKET": str(self._env.bucket)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,  # a SIGTERM for the ranks of a node must not end the upload that it makes urgent
            )
        said, complaint = child.communicate()
        # The script's own last word, and before it that of the aws command, which knows why.
        lines = (complaint.strip() or said.strip() or f"exit code {child.returncode}").splitlines()
        why = ": ".join(line.strip().removeprefix("error: ") for line in reversed(lines[-2:]))
        if child.returncode == EXIT_SUPERSEDED:
            raise Superseded(why, hint="this process was left behind by an older attempt: end it")
        if child.returncode:
            raise NexaError(f"{self._env.bucket}: {why}")
        return said


class Uploader:
    """The thread that brings checkpoints to the stores, and what became of the last one."""

    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._thread: threading.Thread | None = None
        self._step = 0
        """Step of the upload that is under way; 0 while the stores are entered."""
        self._superseded: Superseded | None = None
        self.done_step: int | None = None
        self.done_at = 0.0
        """time.monotonic() at which `done_step` was complete."""

    def enter(self) -> None:
        """Begin to lock older attempts out of the stores. Uploads wait for it; `wait` and `check` tell its end."""
        self._thread = threading.Thread(target=self._enter, daemon=True, name="durable")
        self._thread.start()

    def _enter(self) -> None:
        try:
            progress.note(durable=self._durable.enter())
        except Superseded as err:
            self._superseded = err
        except (NexaError, OSError) as err:
            print(f"warning: the durable store cannot be reached: {err}", flush=True)

    def offer(self, step: int, path: Path, first: Callable[[], object]) -> None:
        """Begin the upload of `path`; `first` is done by the thread before it. Raises Superseded."""
        if self._step and self._thread is not None and self._thread.is_alive():
            print(f"warning: step {step} waits, step {self._step} is still on its way to the durable store", flush=True)
            began = time.monotonic()
            self._thread.join()
            print(f"waited {time.monotonic() - began:.1f} s for the durable store", flush=True)
        elif self._thread is not None:
            self._thread.join()
        self.check()
        self._step = step
        self._thread = threading.Thread(target=self._run, args=(step, path, first), daemon=True, name="durable")
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether the upload ended in time. Raises Superseded when that was its end."""
        if self._thread is not None:
            self._thread.join(max(0.0, timeout_s))
            if self._thread.is_alive():
                return False
        self.check()
        return True

    def give_up(self) -> None:
        self._durable.abort()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def check(self) -> None:
        if self._superseded is not None:
            raise self._superseded

    def _run(self, step: int, path: Path, first: Callable[[], object]) -> None:
        try:
            first()
            if not self._durable.exists:
                return
            self._durable.put(path)
        except Superseded as err:
            self._superseded = err
        except (NexaError, OSError) as err:
            print(f"warning: step {step} did not reach the durable store: {err}", flush=True)
        else:
            self.done_step, self.done_at = step, time.monotonic()
            progress.note(durable=step)
