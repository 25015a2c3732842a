"""Which checkpoint a new attempt goes on from, and how every node gets it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.launch import code_folder, send
from nexa_dist.run import archive
from nexa_dist.run.nodes import Link, on_all
from nexa_dist.run.runner import CommandFailed

VERIFY_TIMEOUT_S = 1800.0
"""Every byte of every checkpoint is read."""


def spread_checkpoint(ctx: Context, links: list[Link], record: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
    """The newest whole checkpoint of a run, verified, on every node: its step and its folder by node name.

    Only rank 0 saves and no shared disk is assumed, so the other nodes have none of it. None when no
    checkpoint was written yet (the run then starts from the beginning).
    """
    send(ctx, links, [archive.package()])
    run_id = record["run_id"]
    scratch = {link.node.name: f"{link.path(link.ssh.cluster.layout.scratch)}/{run_id}" for link in links}
    received = f"resume_{len(record['attempts']) + 1}"
    found: list[tuple[int, Link, str]] = []
    answers = on_all(links, lambda link: _look(link, scratch[link.node.name], run_id))
    for link, answer in zip(links, answers, strict=True):
        for bad in answer["skipped"]:
            ctx.say(f"warning: {link.node.name}: {bad['path']} is passed over: {bad['why']}")
        found += [(whole["step"], link, whole["path"]) for whole in answer["whole"]]
    if not found:
        return None
    step, source, path = max(found, key=lambda row: row[0])
    have = {link.node.name: p for s, link, p in found if s == step}
    have[source.node.name] = path

    def to_node(link: Link) -> tuple[str, str]:
        name = link.node.name
        if name in have:
            return name, have[name]
        target = f"{scratch[name]}/{received}/{path.rsplit('/', 1)[1]}"
        ctx.detail(f"{name}: checkpoint of step {step} from {source.node.name}")
        # an earlier try may have left a folder of this name that did not arrive whole
        link.ssh.run(link.node, ("rm", "-rf", "--", f"{scratch[name]}/{received}"))
        stream = source.ssh.runner.stream(
            (*source.ssh.argv(source.node), shlex.join(("tar", "-C", path, "-cf", "-", ".")))
        )
        try:
            link.unpack(target, stream.out)
        finally:
            stream.end()
        whole = _verified(link, f"{scratch[name]}/{received}")["whole"]
        if step not in [w["step"] for w in whole]:
            raise NexaError(f"{name}: the checkpoint of step {step} did not arrive whole", hint="run it again")
        return name, target

    return step, dict(on_all(links, to_node))


def _look(link: Link, scratch: str, run_id: str) -> dict[str, Any]:
    durable = f"{link.path(link.ssh.cluster.layout.durable)}/{run_id}/checkpoints"
    return _verified(link, f"{scratch}/checkpoints", durable)


def _verified(link: Link, *roots: str) -> dict[str, Any]:
    """Every checkpoint below `roots`, read and verified on the node by the library that wrote it."""
    code = code_folder(link, archive.package())
    command = ("env", f"PYTHONPATH={code}", link.python, "-m", "nexa_dist.train.checkpoint", *roots)
    result = link.ssh.run(link.node, command, timeout_s=VERIFY_TIMEOUT_S)
    if result.code:
        raise CommandFailed(f"{link.node.name}: verifying checkpoints", result)
    return dict(json.loads(result.out))
