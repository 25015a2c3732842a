"""Answers of a run that outlive their node: the journal as a checkpoint of the run, which comes back as weights do.

The run's own store (a durable folder, a bucket, both or none) and its fences are those of a training, and so is what
brings the newest one to a new node. By hand, and in a pipeline on this machine, the journal itself is all there is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nexa_dist.run import files
from nexa_dist.stages.output import STATE
from nexa_dist.stages.teach.journal import Journal
from nexa_dist.train import checkpoint
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper

FILE, OF = "journal.jsonl", "of.json"
"""Names in a checkpoint: the journal, and the key of the output that it is of, with what its step is counted from."""
EVERY_S, BYTES_A_S = 30.0, 1 << 20
"""Seconds between two checkpoints, and more where the journal is so large that this would be more bytes a second."""


class KeptJournal(Journal):
    """A journal with its checkpoints, of a teach stage or of an evaluation. The step of one tells `done`: how many rows
    (or questions) need no answer any more, which never falls."""

    def __init__(
        self, path: Path, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes over what an attempt kept. Raises Superseded when there is a newer attempt."""
        super().__init__(path)
        self._clock = clock
        state = path.parent / STATE
        self._key = str(files.read_object(state)["key"]) if state.exists() else ""
        in_run = "NEXA_RUN_ID" in environ and "NEXA_RUN_DIR" in environ
        self._env = RankEnv.read("stage", environ) if in_run else None
        self._keeper = Keeper(self._env) if self._env else None
        self._base, self._saved, self._began = 0, 0, clock()
        self._last: float | None = None
        self._restore()

    def _restore(self) -> None:
        """Take over what an attempt kept that is not in the journal here, and lock older attempts out of the stores."""
        if self._env is None or self._keeper is None:
            return
        found = self._env.resume_from
        if found is None and (newest := checkpoint.newest_whole(self._env.checkpoints)):
            found = newest[1]
        if found is not None and (problems := checkpoint.verify(found)):
            print(f"warning: {found} is passed over, and its answers are asked for again: {problems[0]}", flush=True)
            found = None
        if found is not None and (found / FILE).is_file():
            self._saved, of = int(checkpoint.manifest(found)["step"]), files.read_object(found / OF)
            if of["key"] != self._key:
                print(f"{found.name} is of another config or other inputs: nothing is taken from it", flush=True)
                self._base = self._saved  # so that ours are the newer ones
            else:
                self._base = int(of["base"])
                if lines := self.take(found / FILE):
                    print(f"{lines} answers of before come from the checkpoint {found.name}", flush=True)
        self._keeper.begin(self._saved)

    def offer(self, done: int) -> None:
        """Begin a checkpoint now and then. Raises what the disk raises, and Superseded."""
        done += self._base
        wait_s = max(EVERY_S, self.size / BYTES_A_S)
        if self._keeper is None or done <= self._saved or self._clock() - (self._last or self._began) < wait_s:
            return
        self._saved, self._last = done, self._clock()
        self._keeper.save_later(done, self._fill())

    def finish(self, done: int) -> None:
        """Keep what there is before the process ends, as far as the store takes it in time."""
        done += self._base
        if self._keeper is None:
            return
        if done > self._saved:
            self._saved, self._last = done, self._clock()
            self._keeper.save(done, self._fill())
        if self._last is not None:
            print(f"answers: {self._keeper.finish()}", flush=True)

    def _fill(self) -> Callable[[Path], None]:
        """Writes the lines of now, of which none is changed any more."""
        self.sync()
        size = self.size

        def fill(folder: Path) -> None:
            with self.path.open("rb") as source, (folder / FILE).open("wb") as out:
                shutil.copyfileobj(source, out)
                out.truncate(size)
            files.write_json(folder / OF, {"key": self._key, "base": self._base})

        return fill
