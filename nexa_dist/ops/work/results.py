"""Results that runs wrote on the nodes, and their way here: by itself at the end of a run, or with `nexa pull`."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.pulled import File, Place, Pulled, holds, put_aside
from nexa_dist.plan import told
from nexa_dist.plan.runs.results import Placed, Wrote, bounded, placed, sized
from nexa_dist.run import files
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, asked
from nexa_dist.run.ssh.receive import Asked, Got, Receiver
from nexa_dist.run.workspace import RunFolder
from nexa_dist.train.checkpoint import sha256_of
from nexa_dist.train.shards.cover import Cover, Part, cover

PAGES = 100
"""Answers of one node about one run."""
TOLD_EVERY_S = 5.0
Replace = Callable[[Path, Path], None]
PARTS = ".part"
"""Parts folder within a pull's folder: what has not come whole."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint on a node. `durable`: in the folder that is to outlive it; `shards`: which files of a sharded one
    are there."""

    step: int
    path: str
    sha256: str
    bytes: int
    durable: bool
    shards: Part | None = None


@dataclass(frozen=True)
class Whole:
    """A checkpoint in the folder of one node, or a sharded one in several together. `sha256` is what all copies of it
    have in common (checkpoint.identity)."""

    step: int
    sha256: str
    bytes: int
    durable: bool
    parts: tuple[tuple[str, Kept], ...]


@dataclass
class Left:
    """Files that a run has left on one node. `cut`: there is more than can be looked through."""

    there: bool = False
    files: list[Wrote] = field(default_factory=list)
    checkpoints: list[Kept] = field(default_factory=list)
    cut: bool = False


@dataclass
class Fetched:
    """Fetched files of a run: those that are here by now, those that stay where they are, and why others did not come,
    by node and name."""

    here: list[Placed] = field(default_factory=list)
    later: list[Wrote] = field(default_factory=list)
    unnamed: list[Wrote] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def asked_of(link: Link, record: Run) -> dict[str, Any]:
    """Message to the agent's `wrote` about a run."""
    durable = f"{link.path(link.ssh.cluster.layout.durable)}/{record.run_id}/checkpoints"
    named = [word for word in record.config.get("outputs") or () if isinstance(word, str)]  # may be an older nexa's
    return {"dir": record.run_dir(link.node.name), "durable": durable, "outputs": named}


def look(link: Link, records: Sequence[Run], timeout_s: float = 120.0) -> list[Left]:
    """Look what each of these runs has left on a node: its newest files' names, and its checkpoints."""
    asked = [asked_of(link, record) for record in records]
    found = [Left() for _ in records]
    todo = list(range(len(records)))
    for _ in range(PAGES):
        message = {"runs": [{**asked[at], "skip": len(found[at].files)} for at in todo], "look_s": timeout_s / 2}
        rows = link.call("wrote", "-", message=message, timeout_s=timeout_s)["runs"]
        if len(rows) != len(todo):
            raise wire.Faulty(link.node.name, "its answer to wrote", f"it is of {len(rows)} runs")
        for at, row in zip(todo, rows, strict=True):
            _add(found[at], row, link, asked[at])
        todo = [at for at, row in zip(todo, rows, strict=True) if row["more"]]
        if not todo or not any(row["files"] for row in rows):
            break
    for at in todo:
        found[at].cut = True
    return found


def _add(left: Left, row: Mapping[str, Any], link: Link, asked: Mapping[str, Any]) -> None:
    roots = [f"{asked['dir']}/checkpoints", asked["durable"]]
    told.checkpoints(link.node.name, row["checkpoints"], roots)
    left.there, left.cut = row["there"], row["cut"]
    left.files += [Wrote(node=link.node.name, **one) for one in row["files"]]
    left.checkpoints = [Kept(**{**one, "shards": Part.of_row(one.get("shards"))}) for one in row["checkpoints"]]


def wholes(left: Mapping[str, Left]) -> list[Whole]:
    """Every checkpoint that the nodes have whole. Of a sharded one that they do not have together there is nothing."""
    found, shards = [], defaultdict[int, dict[tuple[str, bool, str], tuple[Kept, Part]]](dict)
    for node, one in left.items():
        for kept in one.checkpoints:
            if kept.shards is None:
                found.append(Whole(kept.step, kept.sha256, kept.bytes, kept.durable, ((node, kept),)))
            else:
                shards[kept.step][node, kept.durable, kept.path] = (kept, kept.shards)
    for step, held in shards.items():
        for durable in (False, True):
            mine = {key: part for key, (_, part) in held.items() if key[1] or not durable}
            together = cover(mine)
            if isinstance(together, Cover):
                keys = together.enough()
                parts = tuple((key[0], held[key][0]) for key in keys)
                found.append(Whole(step, together.digest, mine[keys[0]].bytes, durable, parts))
    return found


def look_all(links: Sequence[Link], record: Run) -> tuple[dict[str, Left], dict[str, str]]:
    """Look on all nodes; what is left by node, in their order, and why others cannot be asked."""
    return asked(links, lambda link: look(link, [record])[0])


def choose(left: Mapping[str, Left], everything: bool, place: Place, folder: Path, most: float) -> Fetched:
    """Decides which files come; `later` would be too much, `here` holds those that are here already too."""
    rows = [row for found in left.values() for row in found.files]
    made = placed(row for row in rows if everything or row.kind != "other")
    have = [holds(folder, place, one.row) for one in made]
    now, later = bounded([one for one, here in zip(made, have, strict=True) if not here], most)
    unnamed = [row for row in rows if row.kind == "other" and not everything]
    return Fetched(
        [*(one for one, here in zip(made, have, strict=True) if here), *now], [o.row for o in later], unnamed
    )


@contextlib.contextmanager
def pulling(run: RunFolder) -> Iterator[None]:
    """Lock the record of what was pulled of a run: one command at a time writes it."""
    with files.locked(run.path / "pull.lock", "pull"):
        yield


def bring(
    ctx: Context, run: RunFolder, links: Sequence[Link], record: Run, fetched: Fetched, folder: Path, seconds: float
) -> None:
    """The files of `fetched.here` into `folder`/outputs, node by node, what is there already but another's put aside.
    What did not come goes from there to `failed`."""
    pulled = Pulled.of(run)
    place = pulled.at(folder)
    until, into = time.monotonic() + seconds, folder / "outputs"
    todo = [one for one in fetched.here if not one.row.sha256 and not holds(folder, place, one.row)]
    meter = Meter(ctx, sum(one.row.bytes for one in todo))
    try:
        for link in links:
            name = link.node.name
            mine = [one for one in todo if one.row.node == name]
            if mine:
                replace = replacing(place, folder)
                receiver = Receiver(link, record.run_dir(name), folder / PARTS, replace, meter.add)
                known = [known_here(one, place, folder) for one in mine]
                asked = [
                    Asked(one.row.path, one.row.bytes, into / one.into, f"{one.row.bytes} {one.row.mtime_ns}", here[0])
                    for one, here in zip(mine, known, strict=True)
                ]
                came = receiver.take(asked, max(1.0, until - time.monotonic()))
                for one, got, here in zip(mine, came, known, strict=True):
                    _note(one, got, here, place, fetched)
    finally:
        pulled.save(run)
        with contextlib.suppress(OSError):  # not there, or half of a file is
            (folder / PARTS).rmdir()


def known_here(one: Placed, place: Place, folder: Path) -> tuple[str, str]:
    """SHA-256 and place of what is here already and may be the same: a killed pull has put it there and not noted it,
    or an earlier node wrote it too."""
    own, row, first = folder / "outputs" / one.into, one.row, one.first
    if own.is_file() and not own.is_symlink() and own.stat().st_size == row.bytes:
        return sha256_of(own), one.into
    known = place.files.get(first.node, {}).get(first.name) if first else None
    if first and known and known.bytes == row.bytes and holds(folder, place, first):
        return known.sha256, known.into
    return "", ""


def _note(one: Placed, got: Got, known: tuple[str, str], place: Place, fetched: Fetched) -> None:
    row = one.row
    if got.why or (got.same and not known[0]):
        fetched.failed[f"{row.node}: {row.name}"] = got.why or "it is said to be another file"
        fetched.here.remove(one)
        return
    here = known if got.same else (got.sha256, one.into)
    place.files.setdefault(row.node, {})[row.name] = File(row.bytes if got.same else got.bytes, row.mtime_ns, *here)


def replacing(place: Place, folder: Path) -> Replace:
    """Puts a file in its place; what is there and did not come by us as it is, is somebody's own."""
    ours = {known.into: known.sha256 for rows in place.files.values() for known in rows.values()}

    def replace(part: Path, into: Path) -> None:
        if os.path.lexists(into):
            known = ours.get(into.relative_to(folder / "outputs").as_posix())
            plain = into.is_file() and not into.is_symlink()
            if not plain or known is None or sha256_of(into) != known:
                put_aside(into)
        os.replace(part, into)

    return replace


class Meter:
    """Says how far it is, now and then."""

    def __init__(self, ctx: Context, total: int) -> None:
        self.ctx, self.total, self.came, self.said = ctx, total, 0, time.monotonic()

    def add(self, size: int) -> None:
        self.came += size
        if time.monotonic() - self.said >= TOLD_EVERY_S:
            self.said = time.monotonic()
            self.ctx.detail(f"{sized(self.came)} of {sized(self.total)}")


def read_result(ctx: Context, links: Sequence[Link], record: Run) -> dict[str, Any]:
    """Rank 0's result.json from the first node; empty when it left none."""
    first = links[0]
    try:
        got = first.ssh.run(first.node, ("cat", f"{record.run_dir(first.node.name)}/result.json"))
        return dict(wire.said(first.node.name, "result.json", got.out, wire.RESULT)) if got.code == 0 else {}
    except NexaError as error:
        ctx.say(f"warning: what rank 0 left cannot be read: {error}")
        return {}
