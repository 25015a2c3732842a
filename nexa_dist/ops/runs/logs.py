"""`nexa logs`: every line of every rank and of the set-up, of all attempts, from the mirror on the controller."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_dist.errors import UsageError
from nexa_dist.node.protocol import Event
from nexa_dist.ops.context import Context
from nexa_dist.run.logs.follower import How
from nexa_dist.run.logs.items import Item, Quiet, is_last
from nexa_dist.run.logs.mirror import TAIL
from nexa_dist.run.logs.reader import Chunk, Reader, offset_at, tail_offset
from nexa_dist.run.logs.stream import Stream, fetch, follow
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, Ssh, reach, session
from nexa_dist.run.workspace import RunFolder

if TYPE_CHECKING:
    from nexa_dist.ops.view import View

ENDINGS = (".log", ".err")
NAME = re.compile(r"(?:rank_(?P<rank>[0-9]+)/|[^/]*\.)attempt_(?P<attempt>[0-9]+)\.log")
A_TURN_BYTES = 4 << 20
"""Bytes of one log that are shown before the others have their turn."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks for logs and attempts that are new."""


@dataclass(frozen=True)
class Log:
    """One file of the mirror. `rank` is None for torchrun, prepare and the agent; so is the agent's `attempt`."""

    node: str
    source: str
    path: Path

    @property
    def rank(self) -> int | None:
        return self._number("rank")

    @property
    def attempt(self) -> int | None:
        return self._number("attempt")

    def _number(self, name: str) -> int | None:
        found = NAME.fullmatch(self.source)
        return int(found[name]) if found and found[name] else None

    @property
    def order(self) -> tuple[Any, ...]:
        """Attempts one after the other, in each the nodes and their ranks; the agents' own words last."""
        late = self.attempt if self.attempt is not None else 1 << 30
        return late, len(self.node), self.node, -1 if self.rank is None else self.rank, self.source


@dataclass(frozen=True)
class Wanted:
    """Filter of lines. None: no bound."""

    ranks: set[int] | None = None
    setup: bool = False
    """True to show, with ranks, also what came before them."""
    node: str | None = None
    attempt: int | None = None
    pattern: re.Pattern[bytes] | None = None
    since_unix: float | None = None
    tail: int | None = None
    """Lines of each log that are shown, of those that match."""
    timed: bool = False

    def takes(self, log: Log) -> bool:
        return (
            (self.ranks is None or log.rank in self.ranks or (self.setup and log.source.startswith(Event.SETUP)))
            and (self.node is None or log.node == self.node)
            and (self.attempt is None or log.attempt == self.attempt)
        )

    def reader(self, log: Log) -> Reader:
        """Reader of a log, where it begins to be of interest."""
        start = 0 if self.since_unix is None else offset_at(log.path, self.since_unix)
        if self.tail is not None:
            start = tail_offset(log.path, self.tail, self.pattern, start)
        return Reader(log.path, start, self.pattern, self.timed)


def check(run: RunFolder, wanted: Wanted) -> None:
    """Raises UsageError for a rank, node or attempt that the run never had."""
    record = run.load()
    attempts = {row.attempt: row.world_size for row in record.attempts}
    if wanted.node is not None and wanted.node not in record.nodes:
        known = ", ".join(record.nodes)
        raise UsageError(f"{run.run_id} has no node {wanted.node!r}", hint=f"nodes: {known}")
    if wanted.attempt is not None and wanted.attempt not in attempts:
        known = ", ".join(map(str, attempts)) or "none yet"
        raise UsageError(f"{run.run_id} has no attempt {wanted.attempt}", hint=f"attempts: {known}")
    world = attempts[wanted.attempt] if wanted.attempt is not None else max(attempts.values(), default=0)
    if none := sorted(rank for rank in wanted.ranks or () if rank >= world):
        where = run.run_id if wanted.attempt is None else f"attempt {wanted.attempt} of {run.run_id}"
        known = f"ranks: 0 to {world - 1}" if world else "no attempt has begun"
        raise UsageError(f"{where} has no rank {', '.join(map(str, none))}", hint=known)


def find(run: RunFolder, wanted: Wanted) -> list[Log]:
    """The logs of the mirror that are wanted, in the order in which they are shown."""
    found = []
    for path in run.logs.rglob("*") if run.logs.is_dir() else ():
        if path.name.endswith(ENDINGS):
            node, _, source = path.relative_to(run.logs).as_posix().partition("/")
            found.append(Log(node, source, path))
    return sorted((log for log in found if wanted.takes(log)), key=lambda log: log.order)


def logs(ctx: Context, run: RunFolder, wanted: Wanted, *, follow_on: bool) -> Iterator[tuple[Log, Chunk] | None]:
    """The lines, log by log; with `follow_on` also those to come, and None when there is no more for the moment."""
    open_run = run.load().going_on
    if open_run and (not follow_on or wanted.since_unix is not None or wanted.tail is not None):
        _catch_up(ctx, run)
    elif not open_run and run.behind.exists() and not _catch_up(ctx, run):
        run.behind.unlink(missing_ok=True)
    if open_run and follow_on:
        yield from _Following(run, wanted).items(ctx)
        return
    for log in find(run, wanted):
        for chunk in wanted.reader(log).read(final=True):
            yield log, chunk


def _links(ctx: Context, ssh: Ssh, record: Run) -> tuple[list[Link], dict[str, str]]:
    """Links to the nodes of the run that answer, with the run folder of each; says which do not."""
    links, silent = reach(ssh, [node for node in ssh.cluster.nodes if node.name in record.nodes])
    for why in silent.values():
        ctx.say(f"warning: of this node only what was fetched before is shown: {why}")
    return links, {link.node.name: record.run_dir(link.node.name) for link in links}


def _catch_up(ctx: Context, run: RunFolder) -> list[str]:
    """Fetches what is not here yet; answers the nodes of which something is still missing."""
    record = run.load()
    with session(ctx.runner, record.cluster) as ssh:
        links, run_dirs = _links(ctx, ssh, record)
        missing = fetch(links, run_dirs, run.logs)
        for name, why in missing.items():
            ctx.say(f"warning: {name}: only what was fetched is shown: {why}")
    left = [name for name in record.nodes if name not in run_dirs or name in missing]
    for name in set(record.nodes) - set(left):
        for path in (run.logs / name).glob(f"rank_*/*{TAIL}"):  # the log itself is all here now
            path.unlink(missing_ok=True)
    return left


def _attempts(ctx: Context, run: RunFolder) -> Iterator[tuple[Run, list[Link], dict[str, str]]]:
    """The record at the beginning of each attempt, with links and run folders; without links once a second while
    somebody decides what comes next. Ends with the run, or when nobody is left who could begin another attempt."""
    while True:
        record = run.load()
        with session(ctx.runner, record.cluster) as ssh:
            yield record, *_links(ctx, ssh, record)
        while not (more := len(run.load().attempts) != len(record.attempts)) and _undecided(run):
            yield record, [], {}
            ctx.sleep(LOOK_EVERY_S)
        if not more:
            return


def _undecided(run: RunFolder) -> bool:
    """Tell whether another attempt may come. A supervisor closes an attempt before it decides what comes next."""
    record = run.load()
    return run.supervised and (record.going_on or record.last.next is None)


def _at_work(run: RunFolder, number: int, names: set[str], stream: Stream) -> set[str]:
    """Nodes of these that may say more of an attempt: none once another one began; when it was closed, none that has
    not begun it."""
    record = run.load()
    if len(record.attempts) != number:
        return set()
    return names if record.active else names - stream.early()


@dataclass
class _Clock:
    """True once in LOOK_EVERY_S."""

    last: float = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.last < LOOK_EVERY_S:
            return False
        self.last = now
        return True


def _said(
    run: RunFolder,
    number: int,
    links: list[Link],
    run_dirs: dict[str, str],
    wait_s: Callable[[], float],
    **how: bool,
) -> Generator[Item | None]:
    """Items that the nodes send of an attempt (None: nothing for `wait_s`), while one of them may say more of it."""
    stream = follow(links, run_dirs, run.logs, How(contact=False, attempt=number, **how))
    at_work, look = {link.node.name for link in links}, _Clock()
    try:
        while at_work:
            if look.due():
                at_work = _at_work(run, number, at_work, stream)
            item = stream.next(wait_s())
            yield item
            if item is not None and is_last(item):
                at_work.discard(item.node)
    finally:
        stream.close()


@dataclass
class _Following:
    """Reads the mirror while followers write to it. A slow reader of ours waits here, and they go on."""

    run: RunFolder
    wanted: Wanted
    readers: dict[Log, Reader] = field(default_factory=dict)
    look: _Clock = field(default_factory=_Clock)
    moved: bool = False

    def items(self, ctx: Context) -> Iterator[tuple[Log, Chunk] | None]:
        for record, links, run_dirs in _attempts(ctx, self.run):
            if links:
                yield from self._attempt(links, run_dirs, len(record.attempts))
            else:
                yield from self._turn()
                yield None
        yield from self._turn(final=True)

    def _attempt(self, links: list[Link], run_dirs: dict[str, str], number: int) -> Iterator[tuple[Log, Chunk] | None]:
        """While an agent is at work and no other attempt has begun."""
        for _ in _said(self.run, number, links, run_dirs, lambda: 0.01 if self.moved else 0.1, lines=False):
            self.moved = False
            for item in self._turn():
                self.moved = True
                yield item
            yield None

    def _turn(self, final: bool = False) -> Iterator[tuple[Log, Chunk]]:
        """Read what is there, log by log."""
        if final or self.look.due():
            fresh = [log for log in find(self.run, self.wanted) if log not in self.readers]
            self.readers |= {log: self.wanted.reader(log) for log in fresh}
        for log, reader in self.readers.items():
            for chunk in reader.read(final=final, at_most_bytes=None if final else A_TURN_BYTES):
                yield log, chunk


def look_on(ctx: Context, run: RunFolder, view: View) -> None:
    """Shows a run that another command supervises, to its end; decides nothing."""
    from nexa_dist.ops.runs.watch import show  # `nexa logs` shows without it

    for record, links, run_dirs in _attempts(ctx, run):
        if not links:
            view.tick()
            continue
        row = record.last
        view.attempt(row.attempt, list(row.ranks), row.world_size, row.resume_step, row.replaced)
        said = _said(run, len(record.attempts), links, run_dirs, lambda: LOOK_EVERY_S, replay=True)
        with contextlib.closing(said):
            for item in said:
                view.tick()
                if isinstance(item, Quiet):
                    view.quiet(item.node, item.seconds)
                elif item is not None:
                    show(item, view)
