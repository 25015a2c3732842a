"""The checkpoints of a run, wherever they are, and the way of one here: whole by its own manifest, or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.bucket import PULL_S, sync
from nexa_dist.ops.work.pulled import Place, put_aside, step_in
from nexa_dist.ops.work.results import PARTS, Kept, Left, Meter, Whole, wholes
from nexa_dist.run import files
from nexa_dist.run.record import Run
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh.connections import Link
from nexa_dist.run.ssh.receive import Asked, Receiver
from nexa_dist.shape import record, table, whole
from nexa_dist.train import checkpoint
from nexa_dist.train.shards import cover

MANIFEST = record({"files": table(wire.INSIDE, record({"bytes": whole(), "sha256": wire.SHA256}), 100_000)})


@dataclass(frozen=True)
class Found:
    """A checkpoint and where it is: on nodes, in a `folder` of this machine, or in the bucket. `parts` are the folders
    of the nodes, one unless it is sharded."""

    step: int
    kept: Whole | None = None
    parts: tuple[tuple[Link, Kept], ...] = ()
    folder: Path | None = None

    @property
    def where(self) -> str:
        return ", ".join(dict.fromkeys(link.node.name for link, _ in self.parts)) or str(self.folder or "the bucket")


def find(ctx: Context, run: Run, links: Sequence[Link], left: Mapping[str, Left]) -> list[Found]:
    """Find all checkpoints that are known, the newest first, of each the nearest copy first. A bucket that cannot be
    read is said."""
    by_name = {link.node.name: link for link in links if link.node.name in left}
    found = [
        Found(whole.step, whole, tuple((by_name[name], kept) for name, kept in whole.parts))
        for whole in sorted(wholes({name: left[name] for name in by_name}), key=_near(list(by_name)))
    ]
    if run.cluster.traits.one_machine and run.cluster.layout.durable.startswith("/"):
        root = Path(run.cluster.layout.durable, run.run_id, "checkpoints")
        known = {path: re.fullmatch(r"step_([0-9]{8})", path.name) for path in sorted(root.glob("step_*"))}
        found += [Found(int(match[1]), folder=path) for path, match in known.items() if match]
    if run.cluster.bucket and not ctx.dry:
        try:
            found += [Found(step) for step in in_bucket(ctx, run.cluster, run.run_id)]
        except NexaError as error:
            ctx.say(f"warning: the bucket cannot be read from here: {error}")
    return sorted(found, key=lambda one: -one.step)


def _near(names: list[str]) -> Callable[[Whole], tuple[int, bool]]:
    """Nodes in their order, and of each what it has nearest."""
    return lambda whole: (names.index(whole.parts[0][0]) if len(whole.parts) == 1 else len(names), whole.durable)


def wanted(text: str) -> int | None:
    """A step, or None for the newest. Raises UsageError."""
    if text == "newest":
        return None
    if not re.fullmatch(r"[0-9]{1,8}", text):
        raise UsageError(f"--checkpoint {text!r} is neither 'newest' nor a step, such as 40")
    return int(text)


def choose(found: Sequence[Found], step: int | None, run_id: str) -> list[Found]:
    """The copies of this step, or of all, the newest first. Raises UsageError for one that is nowhere."""
    there = sorted({one.step for one in found})
    if step is not None and step not in there:
        known = f"there are: {', '.join(map(str, there))}" if there else "it has none that can be reached"
        raise UsageError(f"{run_id} has no checkpoint of step {step}", hint=known)
    return [one for one in found if step in (None, one.step)]


def fetch(ctx: Context, run: Run, found: Sequence[Found], place: Place, folder: Path) -> dict[str, Any] | None:
    """The first of these that is whole, in `folder`/checkpoints: its step, path, SHA-256 and where it was. None when
    there is none to try. Raises NexaError when none of them is whole, or can be had."""
    problems = []
    for one in found:
        target = step_in(folder, one.step)
        known = one.kept.sha256 if one.kept else place.checkpoints.get(str(one.step))
        if known and _is(target, known):
            return _done(one, target, place)
        try:
            stage = _staged(ctx, run, one, folder / PARTS)
        except NexaError as error:
            problems.append(f"step {one.step} from {one.where}: {error}")
            ctx.say(f"warning: passed over: {problems[-1]}")
            continue
        if not _is(target, checkpoint.identity(checkpoint.manifest(stage))):
            files.make_folder(target.parent)
            put_aside(target)
            os.rename(stage, target)
        return _done(one, target, place)
    if problems:
        raise NexaError(
            "no checkpoint could be had:\n" + "\n".join(problems), hint="run it again, or name a --checkpoint"
        )
    return None


def _is(path: Path, sha256: str) -> bool:
    """Tell whether the checkpoint of this hash is there, whole."""
    return path.is_dir() and not checkpoint.verify(path) and checkpoint.identity(checkpoint.manifest(path)) == sha256


def _done(one: Found, target: Path, place: Place) -> dict[str, Any]:
    place.checkpoints[str(one.step)] = checkpoint.identity(checkpoint.manifest(target))
    return {"step": one.step, "path": str(target), "sha256": checkpoint.digest(target), "from": one.where}


def _staged(ctx: Context, run: Run, one: Found, parts: Path) -> Path:
    """A whole copy of it below `parts`. Raises NexaError."""
    if one.kept:
        return _from_nodes(ctx, one, one.kept, parts)
    if one.folder:
        return checkpoint.copy(one.folder, parts / "here")
    done = sync(ctx, run.cluster, "pull", run.run_id, str(parts / "bucket"), str(one.step), timeout_s=PULL_S)
    path = parts / "bucket" / f"step_{one.step:08d}"
    if done.code or checkpoint.verify(path):
        raise CommandFailed("the download", done)
    return path


def _from_nodes(ctx: Context, one: Found, whole: Whole, parts: Path) -> Path:
    """What the nodes have of it together, in one folder with the manifest of the whole."""
    stage = parts / whole.sha256[:32] / checkpoint.step_name(one.step)
    manifest = stage / checkpoint.MANIFEST
    meter = Meter(ctx, whole.bytes)
    for link, kept in one.parts:
        manifest.unlink(missing_ok=True)
        _take(Receiver(link, kept.path, parts), [Asked(checkpoint.MANIFEST, 1 << 20, manifest, kept.sha256)])
        wanted = files.read_shape(manifest, MANIFEST)["files"]
        asked = [
            Asked(name, want["bytes"], stage / name, want["sha256"])
            for name, want in wanted.items()
            if not ((stage / name).is_file() and (stage / name).stat().st_size == want["bytes"])
        ]
        _take(Receiver(link, kept.path, parts, on_bytes=meter.add), asked)
    if len(one.parts) > 1:
        try:
            checkpoint.seal(stage, cover.union(files.read_object(manifest)))
        except (KeyError, TypeError, ValueError):
            raise NexaError(f"{manifest.name}: damaged (not a checkpoint manifest)") from None
    problems = checkpoint.verify(stage)
    if problems or checkpoint.identity(checkpoint.manifest(stage)) != whole.sha256:
        shutil.rmtree(stage)
        raise NexaError((problems or ["it is another one than the nodes told of"])[0])
    return stage


def _take(receiver: Receiver, asked: Sequence[Asked]) -> None:
    for one, got in zip(asked, receiver.take(asked), strict=True):
        if got.why:
            raise NexaError(f"{one.name}: {got.why}")


def in_bucket(ctx: Context, cluster: Cluster, run_id: str) -> list[int]:
    """Steps of the checkpoints of a run in the bucket, by our own credentials. Raises NexaError."""
    listed = sync(ctx, cluster, "list", run_id, "--json", timeout_s=120.0)
    if listed.code:
        raise CommandFailed("listing its checkpoints", listed)
    try:
        return [row["step"] for row in wire.IN_BUCKET(json.loads(listed.out))]
    except ValueError as error:
        raise NexaError(f"run_sync.sh says what makes no sense: {error}") from None
