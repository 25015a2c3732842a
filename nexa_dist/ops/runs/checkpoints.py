"""Which checkpoint a new attempt goes on from, and how every node gets it."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.agent_spec import bucket_environment, code_folder
from nexa_dist.ops.runs.code import send
from nexa_dist.plan import told
from nexa_dist.run.code import archive
from nexa_dist.run.record import Run
from nexa_dist.run.runner import CommandFailed, Result
from nexa_dist.run.ssh.connections import Link, by_node, on_all
from nexa_dist.shape import maybe
from nexa_dist.train.shards.cover import Cover, Part, cover

Folder = tuple[str, str]
"""A node's name, and the folder of a step there."""
Shards = defaultdict[int, dict[Folder, Part]]
KEEP = 2
"""Whole checkpoints on a node that only receives them, as on rank 0's."""
ASIDE = "shards"
"""In a run's folder: what another node had of a step, until it is joined to what this one has."""
VERIFY_TIMEOUT_S = 1800.0
"""Every byte of every checkpoint is read."""


def spread_checkpoint(
    ctx: Context,
    links: Sequence[Link],
    record: Run,
    to: Sequence[Link] | None = None,
    saved: int | None = None,
) -> tuple[int, dict[str, str]] | None:
    """The newest whole checkpoint of a run, verified, on every node (or on those of `to`): its step and its folder by
    node name. A sharded one stays where it is: its ranks bring each node what it lacks (train/shard_keeper.py), and
    those of `to` only get what they do not hold together.

    Otherwise only rank 0 saves and no shared disk is assumed, so the other nodes have none of it. None when no
    checkpoint was written yet (the run then starts from the beginning). `saved` is the newest that rank 0 told of: when
    that one is found, no bucket holds a newer one, and none is asked, which takes seconds. A dry run asks none either,
    copies nothing, and answers where the checkpoint would be.
    """
    if not ctx.dry:
        send(ctx, links, [archive.package()])
    run_id = record.run_id
    answers = on_all(links, lambda link: _verified(link, _root(link, run_id), _durable(link, run_id)))
    found: list[tuple[int, Link, str]] = []
    shards: Shards = defaultdict(dict)
    for link, answer in zip(links, answers, strict=True):
        for bad in answer["skipped"]:
            ctx.say(f"warning: {link.node.name}: {bad['path']} is passed over: {bad['why']}")
        for whole in answer["whole"]:
            if part := Part.of_row(whole.get("shards")):
                shards[whole["step"]][link.node.name, whole["path"]] = part
            else:
                found.append((whole["step"], link, whole["path"]))
    step, source, path = max(found, key=lambda row: row[0], default=(0, None, ""))
    together = _together(ctx, shards, step)
    known = ctx.dry or (saved is not None and max(step, together) >= saved)
    if not known and (pulled := _from_bucket(ctx, links[0], run_id, max(step, together))) is not None:
        step, source, path = pulled
        if _is_sharded(links[0], run_id, path):
            together, shards = step, defaultdict(dict)
    takers = links if to is None else to
    if together and together >= step:
        parts = shards[together]
        if to is not None:
            _spare(ctx, links, to, run_id, together, parts)
        # The fullest folder of each node. The ranks bring what it lacks, over the network that is theirs.
        fullest = dict(sorted(parts, key=lambda key: len(parts[key].has)))
        names = [link.node.name for link in takers]
        return together, {name: fullest.get(name) or _received(link, run_id, together)
                          for name, link in zip(names, takers, strict=True)}  # fmt: skip
    if source is None:
        return None
    have = {link.node.name: p for s, link, p in found if s == step}
    have[source.node.name] = path

    def to_node(link: Link) -> str:
        name = link.name
        if name not in have and ctx.dry:
            have[name] = _received(link, run_id, step)
        elif name not in have:
            ctx.detail(f"{name}: checkpoint of step {step} from {source.node.name}")
            have[name] = _copy(source, path, link, run_id, step)
        return have[name]

    return step, by_node(takers, to_node)


def _together(ctx: Context, shards: Shards, plain: int) -> int:
    """The newest sharded step that the nodes hold together; 0 when there is none newer than `plain`."""
    for step in sorted((step for step in shards if step > plain), reverse=True):
        held = cover(shards[step])
        if isinstance(held, Cover):
            return step
        ctx.say(f"warning: the checkpoint of step {step} is passed over: {held}")
    return 0


def _is_sharded(link: Link, run_id: str, path: str) -> bool:
    whole = _verified(link, _root(link, run_id))["whole"]
    return any("shards" in row for row in whole if row["path"] == path)


def _spare(
    ctx: Context, links: Sequence[Link], to: Sequence[Link], run_id: str, step: int, parts: Mapping[Folder, Part]
) -> None:
    """What those of `to` do not hold together of a sharded step goes to the first of them."""
    names, by_name = [link.node.name for link in to], {link.node.name: link for link in links}
    held = cover(parts)
    if not isinstance(held, Cover) or isinstance(cover({k: p for k, p in parts.items() if k[0] in names}), Cover):
        return
    mine = {key: part for key, part in parts.items() if part.digest == held.digest}
    have = {number for (name, _), part in mine.items() if name in names for number in part.has}
    for (name, path), part in mine.items():
        if name not in names and part.has - have:
            ctx.detail(f"{names[0]}: shards of step {step} from {name}")
            aside = f"{to[0].run_dir(run_id)}/{ASIDE}/{path.rpartition('/')[2]}"
            _stream(by_name[name], path, to[0], aside)
            module = ("-m", "nexa_dist.train.shards.join", aside, _root(to[0], run_id))
            command = ("env", f"PYTHONPATH={code_folder(to[0], archive.package())}", to[0].python, *module)
            joined = to[0].ssh.run(to[0].node, command, timeout_s=VERIFY_TIMEOUT_S)
            if joined.code:
                raise CommandFailed(f"{names[0]}: shards of step {step} from {name}", joined)
            have |= part.has


def rescue(ctx: Context, links: Sequence[Link], record: Run, leaving: Sequence[str]) -> None:
    """The newest checkpoint from nodes that are about to go to those that stay, while they can still be asked.

    What cannot be had is said and no error: an older checkpoint, or the durable one, is then the newest.
    """
    staying = [link for link in links if link.node.name not in leaving]
    reachable = []
    for link in links:
        try:
            link.ssh.run(link.node, ("true",), timeout_s=10)
            reachable.append(link)
        except NexaError:
            continue
    if not staying or not any(link.node.name in leaving for link in reachable):
        return
    try:
        with ctx.phase("newest checkpoint to the nodes that stay"):
            spread_checkpoint(ctx, reachable, record, [link for link in staying if link in reachable])
    except NexaError as error:
        ctx.say(f"warning: not everything could be rescued from {', '.join(leaving)}: {error}")


def _root(link: Link, run_id: str) -> str:
    """Folder in which rank 0 saves, and from which the other nodes get its checkpoints."""
    return f"{link.run_dir(run_id)}/checkpoints"


def _durable(link: Link, run_id: str) -> str:
    return f"{link.path(link.ssh.cluster.layout.durable)}/{run_id}/checkpoints"


def _from_bucket(ctx: Context, link: Link, run_id: str, step: int) -> tuple[int, Link, str] | None:
    """The bucket's newest whole checkpoint on this node, when there is one that is newer than `step`."""
    if not link.ssh.cluster.bucket:
        return None
    listed = _sync(link, run_id, "list", "--json")
    if listed.code:
        ctx.say(f"warning: the bucket cannot be read, so it is passed over: {listed.tail(2)}")
        return None
    found = wire.said(link.node.name, "what it says of the bucket", listed.out, wire.IN_BUCKET)
    newest = max((row["step"] for row in found), default=0)
    if newest <= step:
        return None
    ctx.detail(f"{link.node.name}: checkpoint of step {newest} from {link.ssh.cluster.bucket}")
    # Without a step, so that a damaged one is passed over for the one before it.
    pulled = _sync(link, run_id, "pull", _root(link, run_id), timeout_s=VERIFY_TIMEOUT_S)
    if pulled.code:
        ctx.say(f"warning: nothing can be had from the bucket: {pulled.tail(2)}")
        return None
    path = next(iter(pulled.out.decode(errors="replace").strip().splitlines()[-1:]), "")
    said = [{"step": path.rpartition("_")[2], "path": path}]
    got = int(told.checkpoints(link.node.name, said, [_root(link, run_id)])[0]["step"])
    return (got, link, path) if got > step else None


def newest_in_bucket(links: Sequence[Link], run_id: str) -> dict[str, Any] | None:
    """step, uri and sha256 of the bucket's newest whole checkpoint, asked through the first node that can; None when
    there is none, or nobody can."""
    for link in links if links[0].ssh.cluster.bucket else ():
        try:
            shown = _sync(link, run_id, "show")
        except NexaError:  # this node is gone; another one may answer
            continue
        if shown.code == 0:
            found = wire.said(link.node.name, "what it says of the bucket", shown.out, maybe(wire.SAVED))
            return dict(found) if found else None
    return None


def _sync(link: Link, run_id: str, verb: str, *words: str, timeout_s: float = 120) -> Result:
    """What run_sync.sh answers on a node."""
    code = code_folder(link, archive.package())
    settings = {"PYTHONPATH": code, "NEXA_PYTHON": link.python, **bucket_environment(link.ssh.cluster, code)}
    script = ("env", *(f"{name}={value}" for name, value in settings.items()), "bash", settings["NEXA_SYNC"])
    return link.ssh.run(link.node, (*script, verb, run_id, *words), timeout_s=timeout_s)


def _received(link: Link, run_id: str, step: int) -> str:
    """Folder in which a node has a checkpoint that another one sent."""
    return f"{_root(link, run_id)}/step_{step:08d}"


def _copy(source: Link, path: str, link: Link, run_id: str, step: int) -> str:
    """A checkpoint from one node to another, verified there. Returns its path."""
    target = _received(link, run_id, step)
    _stream(source, path, link, target)
    whole = _verified(link, _root(link, run_id))["whole"]
    if step not in [row["step"] for row in whole]:
        raise NexaError(f"{link.node.name}: the checkpoint of step {step} did not arrive whole", hint="run it again")
    if old := [row["path"] for row in whole[KEEP:]]:
        link.ssh.run(link.node, ("rm", "-rf", "--", *old))
    return target


def _stream(source: Link, path: str, link: Link, target: str) -> None:
    link.ssh.run(link.node, ("rm", "-rf", "--", target))  # one that did not arrive whole, or was damaged since
    stream = source.ssh.runner.stream((*source.ssh.argv(source.node), shlex.join(("tar", "-C", path, "-cf", "-", "."))))
    try:
        link.unpack(target, stream.out)
    finally:
        stream.end()


def _verified(link: Link, *roots: str) -> dict[str, Any]:
    """Every checkpoint below `roots`, read and verified on the node by the library that wrote it."""
    code = code_folder(link, archive.package())
    command = ("env", f"PYTHONPATH={code}", link.python, "-m", "nexa_dist.train.checkpoint", *roots)
    result = link.ssh.run(link.node, command, timeout_s=VERIFY_TIMEOUT_S)
    if result.code:
        raise CommandFailed(f"{link.node.name}: verifying checkpoints", result)
    answer = dict(wire.said(link.node.name, "what it says of its checkpoints", result.out, wire.CHECKPOINTS))
    return {**answer, "whole": told.checkpoints(link.node.name, answer["whole"], roots)}
