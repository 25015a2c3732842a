"""The queue of a cluster: runs that are to be one after the other, in a file that outlives every controller."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import files, trust
from nexa_dist.run.code import archive
from nexa_dist.run.workspace import ClusterFolder, RunFolder, loaded

State = Literal["waiting", "running", "done", "failed", "stopped", "removed"]
MOST_ROWS = 1000
CHANGE_S = 10.0
"""Seconds within which any change of the file is done."""


@dataclass(frozen=True)
class Row:
    """One run of the queue, with its training as it was when it was added."""

    id: str
    root: str
    """Workspace that it belongs to: its code, and where its run is recorded."""
    config: dict[str, Any]
    config_file: str
    point: dict[str, str] = field(default_factory=dict)
    """Values that `--grid` gave the row, by key."""
    code: str = ""
    """Hash of its code as it was then; empty in a row of an older nexa, whose run takes the code as it is when it
    begins."""
    git_commit: str | None = None
    state: State = "waiting"
    run_id: str = ""
    why: str = ""
    began_s: float | None = None
    """Seconds from the end of the run before until its launcher was started on a node."""
    first_rank_s: float | None = None
    """The same until its first rank was: the launcher's own start comes on top."""

    @property
    def run(self) -> RunFolder | None:
        """Run of the row, if it was begun: a folder without a record is what a killed launch left."""
        found = RunFolder(Path(self.root) / "runs" / self.run_id) if self.run_id else None
        return found if found and found.json.exists() else None


@dataclass
class Kept:
    """queue.json."""

    rows: list[Row] = field(default_factory=list)
    """Rows in the order in which they run."""
    made: int = 0
    """Rows ever made, for the name of the next."""
    stop_on_failure: bool = False
    version: int = 1


@dataclass(frozen=True)
class Queue:
    """`queue.json` in the folder of a cluster. Each change is whole, on the disk, and alone."""

    folder: ClusterFolder

    @property
    def path(self) -> Path:
        return self.folder.path / "queue.json"

    @property
    def _worker(self) -> Path:
        return self.folder.path / "queue-worker.lock"

    def load(self) -> Kept:
        """Raises NexaError when the file is torn."""
        if not self.path.exists():
            return Kept()
        hint = f"the queue begins anew once {self.path} is moved away; nexa runs lists what has run"
        return loaded(self.path, Kept, hint)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Kept]:
        """The content, which is written when the block ends."""
        trust.claim(self.folder.path.parents[2])
        with contextlib.ExitStack() as held:
            until = time.monotonic() + CHANGE_S
            while True:
                try:
                    held.enter_context(files.locked(self.folder.path / "queue.lock", "queue"))
                    break
                except NexaError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
            kept = self.load()
            yield kept
            files.write_json(self.path, asdict(kept))
            used = {row.code for row in kept.rows if row.state in ("waiting", "running")}
            for path in self._code.glob("*.tar.gz"):
                if archive.Kept(path).hash not in used:
                    path.unlink(missing_ok=True)

    @property
    def _code(self) -> Path:
        return self.folder.path / "queue-code"

    def keep(self, codes: Iterable[archive.Archive]) -> None:
        """Store the code of rows, while the queue is being changed: what no row names goes at the end of that."""
        for code in codes:
            if not (self._code / f"{code.hash}.tar.gz").exists():
                archive.keep(self._code, code)

    def code(self, row: Row) -> archive.Archive | None:
        """Code of a row. Raises NexaError when it is no longer there as it was."""
        return archive.opened(archive.Kept(self._code / f"{row.code}.tar.gz")) if row.code else None

    def update(self, row: Row, **fields: Any) -> Row:
        """The row with these fields, on the disk. It may have been moved meanwhile."""
        made = replace(row, **fields)
        with self.changing() as kept:
            kept.rows = [made if one.id == row.id else one for one in kept.rows]
        return made

    @contextlib.contextmanager
    def worked(self) -> Iterator[None]:
        """Held by the one command that begins its runs; gone with it. Raises NexaError when another one does."""
        with files.locked(self._worker, "queue run"):
            yield

    @property
    def at_work(self) -> bool:
        """Tell whether a living command begins the queue's runs."""
        return files.held(self._worker)

    def at_work_on(self, nodes: Collection[str]) -> bool:
        """Tell whether such a command has runs for one of these nodes."""
        over = ("done", "failed", "stopped", "removed")
        wanted = [row.config.get("nodes") or nodes for row in self.load().rows if row.state not in over]
        return self.at_work and any(not {*nodes}.isdisjoint(names) for names in wanted)

    def wants_nodes(self) -> bool:
        """Tell whether the nodes are needed when the run that ends now is no more. A torn file keeps no node alive."""
        try:
            kept = self.load()
        except NexaError:
            return False
        return not kept.stop_on_failure and any(row.state == "waiting" for row in kept.rows)


def add(kept: Kept, rows: list[Row]) -> list[Row]:
    """Puts rows behind the others and names them. Those that are over go when nothing is left to do: `nexa runs` has
    their runs. Raises UsageError for too many."""
    if not any(row.state in ("waiting", "running") for row in kept.rows):
        kept.rows = []
    if len(kept.rows) + len(rows) > MOST_ROWS:
        raise UsageError(f"the queue would have {len(kept.rows) + len(rows)} rows; at most {MOST_ROWS}")
    named = [replace(row, id=f"q{kept.made + place}") for place, row in enumerate(rows, 1)]
    kept.made += len(rows)
    kept.rows += named
    return named


def waiting(kept: Kept, name: str) -> Row:
    """The waiting row of this name. Raises UsageError when it is none, or no longer."""
    row = next((row for row in kept.rows if row.id == name), None)
    if row is None:
        raise UsageError(f"the queue has no {name!r}", hint="nexa queue lists what it has")
    if row.state != "waiting":
        hint = f"nexa stop {row.run_id} ends it" if row.state == "running" and row.run_id else "nexa queue shows it"
        raise UsageError(f"{name} does not wait any more: {row.state}", hint=hint)
    return row


def remove(kept: Kept, names: list[str]) -> None:
    """Takes waiting rows out. Raises UsageError, and takes none, when one of them does not wait."""
    gone = [waiting(kept, name) for name in names]
    kept.rows = [replace(row, state="removed") if row in gone else row for row in kept.rows]


def move(kept: Kept, name: str, place: int) -> None:
    """Makes a waiting row the `place`th of those that wait, counted from 1."""
    row = waiting(kept, name)
    over = [one for one in kept.rows if one.state != "waiting"]
    wait = [one for one in kept.rows if one.state == "waiting" and one.id != name]
    if not 1 <= place <= len(wait) + 1:
        raise UsageError(f"{place} is no place in the queue, where {len(wait) + 1} wait", hint="1 is the next to begin")
    wait.insert(place - 1, row)
    kept.rows = over + wait


def settled(row: Row) -> Row:
    """The row as its run tells: begun or not, how it ended. Where nothing was begun it waits again."""
    run = row.run
    if row.state != "running":
        return row
    if run is None:
        return replace(row, state="waiting", run_id="")
    record = run.load()
    if record.going_on or not record.attempts:
        return row
    ends: dict[str, State] = {"completed": "done", "stopped": "stopped"}
    return replace(row, state=ends.get(record.last.state, "failed"), why=record.last.cause)
