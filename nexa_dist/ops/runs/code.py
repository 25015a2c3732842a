"""The code of an attempt: which files it is, what of the project is not sent, and its way to the nodes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nexa_dist.config.backends import BACKENDS, resolve
from nexa_dist.config.launchers import calls_one
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.agent_spec import code_folder
from nexa_dist.run.code import archive, ignore
from nexa_dist.run.code.listing import shown
from nexa_dist.run.record import Attempt
from nexa_dist.run.ssh.connections import Link, on_all, threads

PART_BYTES = 1 << 20
"""Smaller code is sent whole: to ask first would take longer."""
LARGE_BYTES = 100_000_000
"""A larger file is said before it is sent."""
TOLD_BYTES, TELL_S = 4 << 20, 2.0
"""Archive size in bytes from which progress of the upload is told, and seconds between two lines of it."""
SLOWEST_BYTES_S = 100_000
LINES = 20
"""Lines about what is not sent; the rest is counted."""


def of_now(ctx: Context, config: TrainConfig) -> tuple[archive.Archive, archive.Archive]:
    """The project as it is in the workspace now, and our package. Says what is not sent."""
    root = ctx.workspace.root
    found = archive.project(ctx.runner, root, config.files)
    _check_named(config, root, found)
    source = next((file.content for file in found.files if file.name == os.path.normpath(config.script or "")), b"")
    if launcher := calls_one(source):
        ctx.say(
            f"warning: {config.script} seems to call {launcher}, and nexa starts the ranks itself: below it they would "
            f"wait without end; name the program that {launcher} starts as script"
        )
    for file in found.files:
        if len(file.content) > LARGE_BYTES:
            named = any(f"{file.name}/".startswith(f"{word.rstrip('/')}/") for word in config.files)
            cure = "files: names it" if named else f"the line /{file.name} in {ignore.FILE} leaves it out"
            ctx.say(f"{shown(file.name)} has {len(file.content) / 1e6:.0f} MB and goes to every node: {shown(cure)}")
    for name, path in found.followed:
        inside = sum(one == name or one.startswith(f"{name}/") for one in found.names)
        ctx.say(f"sent from outside the project, as files: says: {name} → {shown(path)} ({inside} files)")
    if found.left_out:
        ctx.say("not sent to the nodes:")
        for one in found.left_out[:LINES]:
            ctx.say(f"  {one}")
        if len(found.left_out) > LINES:
            ctx.say(f"  and {len(found.left_out) - LINES} more")
    return found, archive.package()


def _check_named(config: TrainConfig, root: Path, project: archive.Archive) -> None:
    """What train.yaml names, and what the backend's own file names, is among the files that are sent."""
    _check_sent("script", config.script, root, project)
    _check_sent("config", config.config, root, project)
    if config.backend and (reader := BACKENDS[config.backend].reads):
        for name in getattr(resolve(reader)(config), "files", ()):
            _check_sent(f"{config.config}:", name, root, project)


def _check_sent(key: str, given: str | None, root: Path, project: archive.Archive) -> None:
    name = os.path.normpath(given or "")
    if given and not Path(given).is_absolute() and name not in project.names:
        told = next((str(one) for one in project.left_out if f"{name}/".startswith(f"{one.name}/")), "")
        there = told or "is ignored, so it is not sent" if (root / given).exists() else "does not exist"
        raise NexaError(f"{key} {given} {there} (in {root})", hint="paths are relative to this folder")


def send(
    ctx: Context,
    links: Sequence[Link],
    archives: Sequence[archive.Code],
    have: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Code to every node at once. What a node has already, and is what its name says, is not sent again; what is sent
    is packed once.

    `have` by node name are the folders that are there; without it the nodes are asked.
    """
    packed: dict[str, bytes] = {}
    packing = threading.Lock()

    def part(link: Link, target: str, code: archive.Code) -> bytes | None:
        """Packs, of large code, what the node lacks; None where that would be most of it."""
        if not isinstance(code, archive.Archive) or code.size < PART_BYTES:
            return None
        marks = {file.name: file.mark for file in code.files}
        lacking = [n for n in link.call("lacks", target, message={"files": marks})["lacks"] if n < len(code.files)]
        saved = code.size - sum(len(code.files[n].content) for n in lacking)
        return code.pack_part(lacking) if saved > code.size / 2 else None

    def to_node(link: Link) -> None:
        for code in archives:
            target = code_folder(link, code)
            if link.call("whole", target)["whole"] if have is None else target in have[link.node.name]:
                continue
            if (some := part(link, target, code)) is not None:
                with contextlib.suppress(NexaError):  # other code there went meanwhile: then all of it is sent
                    _to_node(ctx, link, target, code.hash, some, part=True)
                    ctx.detail(f"{link.node.name}: sent {max(1, len(some) >> 10)} KiB of code, what was changed")
                    continue
            with packing:
                data = packed.get(code.hash) or code.pack()
                packed[code.hash] = data
            _to_node(ctx, link, target, code.hash, data)
            ctx.detail(f"{link.node.name}: sent {max(1, len(data) >> 10)} KiB of code")

    on_all(links, to_node)


def _to_node(ctx: Context, link: Link, target: str, name: str, data: bytes, *, part: bool = False) -> None:
    """Sends an archive; of a large one it is said now and then how much has gone."""
    if len(data) < TOLD_BYTES:
        link.unpack(target, data, name, part=part)
        return
    over, size = threading.Event(), len(data)

    def tell() -> None:
        while not over.wait(TELL_S):
            gone = os.lseek(file.fileno(), 0, os.SEEK_CUR)  # ssh reads by the same place in the file
            ctx.detail(f"{link.node.name}: {gone >> 20} of {size >> 20} MiB of code")

    with tempfile.TemporaryFile() as file, threads(1) as pool:
        file.write(data)
        file.seek(0)
        pool.submit(tell)
        try:
            link.unpack(target, file, name, part=part, timeout_s=600.0 + size / SLOWEST_BYTES_S)
        finally:
            over.set()


def tell_kept(ctx: Context, attempt: Attempt) -> None:
    """Tell which files on the nodes are not as the code has them, because the run's own scripts have rewritten it."""
    for node, laid in attempt.laid.items():
        for key, what in (
            ("kept", "rewritten by the run, and kept as it is"),
            ("aside", "in the way of the code, or older than it: it is in the folder aside of the run there"),
        ):
            if key in laid:
                ctx.say(f"{node}: {shown(', '.join(laid[key]))}: {what}")
