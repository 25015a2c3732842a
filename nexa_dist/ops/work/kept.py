"""Outputs of a run in the bucket (node/keep.py brings them there), and their way here where a node has them no more."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.work import results
from nexa_dist.ops.work.bucket import PULL_S, sync
from nexa_dist.ops.work.pulled import File, Pulled, holds
from nexa_dist.ops.work.results import PARTS, Fetched, Left
from nexa_dist.plan.runs.results import Placed, Wrote, latest, sized
from nexa_dist.run import files
from nexa_dist.run.record import Run
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh.connections import Link, on_all
from nexa_dist.run.workspace import RunFolder
from nexa_dist.train.checkpoint import sha256_of

LIST_S, ASK_S = 120.0, 75.0
KEEP_S = 60.0
FOLDER = "kept"
"""Folder in a pull's parts folder: the manifests, and below a node's name the files that come from the bucket."""


def with_bucket(ctx: Context, record: Run, left: Mapping[str, Left], folder: Path) -> dict[str, Left]:
    """`left` with the files that no node has any more and the bucket has, by node in the order of the ranks. A bucket
    that cannot be read is said."""
    found = dict(left)
    may_lack = len(record.attempts) > 1 or any(name not in left or not left[name].there for name in record.nodes)
    if not record.cluster.bucket or ctx.dry or not may_lack:
        return found
    try:
        for name, rows in _listed(ctx, record, folder / PARTS / FOLDER).items():
            there = {row.name for row in left[name].files} if name in left else set()
            here = found.get(name, Left(there=True))
            found[name] = replace(here, files=[*here.files, *(row for row in rows if row.name not in there)])
    except (NexaError, OSError) as error:
        ctx.say(f"warning: outputs in the bucket cannot be read from here: {error}")
    return {name: found[name] for name in record.nodes if name in found}


def _listed(ctx: Context, record: Run, stage: Path) -> dict[str, list[Wrote]]:
    """Files that the bucket has, by node: the newest of each name. Raises NexaError."""
    shutil.rmtree(stage / ".json", ignore_errors=True)
    files.make_folder(stage / ".json")
    done = sync(ctx, record.cluster, "kept", record.run_id, str(stage / ".json"), timeout_s=LIST_S)
    if done.code:
        raise CommandFailed("listing its outputs", done)
    found = defaultdict[str, dict[int, list[Wrote]]](dict)
    for path in (stage / ".json").glob("*/g*.json"):
        number, node = re.fullmatch(r"g([0-9]{6,9})\.json", path.name), path.parent.name
        if number and node in record.nodes:
            try:
                rows = files.read_shape(path, wire.KEPT)["files"]
            except NexaError as error:  # any node of the run may write there
                ctx.say(f"warning: outputs of {node} in the bucket are passed over: {error}")
            else:
                found[node][int(number[1])] = [Wrote(node=node, **row) for row in rows]
    shutil.rmtree(stage / ".json", ignore_errors=True)
    return {node: latest(attempts) for node, attempts in found.items()}


def bring(ctx: Context, run: RunFolder, record: Run, fetched: Fetched, folder: Path, seconds: float) -> None:
    """The files of `fetched.here` that come from the bucket, each checked by its SHA-256. What did not come goes from
    there to `failed`."""
    pulled = Pulled.of(run)
    place = pulled.at(folder)
    todo = [one for one in fetched.here if one.row.sha256 and not holds(folder, place, one.row)]
    try:
        for node in dict.fromkeys(one.row.node for one in todo):
            mine = [one for one in todo if one.row.node == node]
            known = {one: results.known_here(one, place, folder) for one in mine}
            asked = {one.row.sha256 for one in mine if known[one][0] != one.row.sha256}
            stage = folder / PARTS / FOLDER / node
            why = _fetch(ctx, record, node, sorted(asked), stage, seconds) if asked else ""
            replacing = results.replacing(place, folder)
            for one in mine:
                here = known[one] if known[one][0] == one.row.sha256 else (one.row.sha256, one.into)
                if here is not known[one] and (why_not := _put(one, stage, folder, replacing)):
                    fetched.failed[f"{node}: {one.row.name}"] = why or why_not
                    fetched.here.remove(one)
                    continue
                place.files.setdefault(node, {})[one.row.name] = File(one.row.bytes, one.row.mtime_ns, *here)
    finally:
        pulled.save(run)
    if not any(one in fetched.here for one in todo) or not fetched.failed:
        shutil.rmtree(folder / PARTS / FOLDER, ignore_errors=True)


def _fetch(ctx: Context, record: Run, node: str, asked: Sequence[str], stage: Path, seconds: float) -> str:
    """Files of a node into `stage`, under their hashes; those that are there already stay. Answers why not all came."""
    files.make_folder(stage)
    ctx.detail(f"{node} is not asked: {len(asked)} of its files come from the bucket")
    words = ("fetch", record.run_id, node, str(stage))
    given = "".join(f"{name}\n" for name in asked).encode()
    done = sync(ctx, record.cluster, *words, stdin=given, timeout_s=min(PULL_S, seconds))
    return str(CommandFailed("the download", done)) if done.code else ""


def _put(one: Placed, stage: Path, folder: Path, replacing: results.Replace) -> str:
    """Put a file in its place, or answer why it is not the one that was kept."""
    part, into = stage / one.row.sha256, folder / "outputs" / one.into
    if not part.is_file():
        return "the bucket has it no more"
    if sha256_of(part) != one.row.sha256:
        part.unlink()
        return "what the bucket has is not what was written"
    copy = part.with_suffix(".copy")  # another name may need it too
    copy.unlink(missing_ok=True)
    os.link(part, copy)
    files.make_folder(into.parent)
    replacing(copy, into)
    return ""


def ask(ctx: Context, links: Sequence[Link], record: Run) -> None:
    """Have the nodes bring their outputs to the bucket now: a run that failed for good is over for them only when
    nothing more comes. What goes wrong is said."""

    def one(link: Link) -> None:
        try:
            message = {"seconds": KEEP_S}
            told = link.call("keep", record.run_dir(link.node.name), message=message, timeout_s=ASK_S)
        except NexaError as error:
            told = {"files": 0, "bytes": 0, "why": str(error)}
        for line in words(link.node.name, told):
            ctx.say(line)

    if record.cluster.bucket and links:
        on_all(links, one)


def words(node: str, told: Mapping[str, Any]) -> list[str]:
    """Lines about what a node says that it kept."""
    lines = [f"{node}: {told['files']} outputs ({sized(told['bytes'])}) in the bucket"] if told["files"] else []
    if told.get("why"):
        left = f"{told['later']} outputs ({sized(told['later_bytes'])})" if told.get("later") else "its outputs"
        lines.append(f"warning: {node}: {left} did not reach the bucket: {told['why']}")
    return lines
