"""A folder that one node has, to others over the network that is theirs alone: what comes into a cluster comes once.

The same program as the bootstrap's (ansible/roles/uv_env/files/share_env.py): a list of SHA-256 whose digest goes over
ssh, then the files; what a taker gets is what the list says, or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.run import bundle
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh.connections import Link, on_all

LIMIT_S = 900
"""Seconds for all to take it, of what is no larger than an environment."""
SLOWEST = 10_000_000
"""Bytes a second: who takes longer for more is given up."""
ALONE = "the nodes have no network of their own"


def hand_on(
    ctx: Context, source: Link, takers: Sequence[Link], folders: Mapping[str, str], what: str, size: int = 0
) -> dict[str, str]:
    """Hand folders on from one node to others; returns by name of each taker "", or why it has not got them: the caller
    then makes it there after all. `folders`: the folder's absolute path by node name; whole folders hold a file
    `.complete`. `what` is its name for people, `size` its bytes, where they may be more than an environment has."""
    if not source.ssh.cluster.traits.network:
        return {link.node.name: ALONE for link in takers}
    address = source.node.peer_address
    limit_s = LIMIT_S + size // SLOWEST
    asked = {"env": folders[source.node.name], "address": address, "takers": len(takers), "limit_s": limit_s}
    try:
        offer = _share(source, "offer", asked, limit_s)
    except NexaError as error:
        return {link.node.name: str(error) for link in takers}

    def take(item: tuple[int, Link]) -> tuple[str, str]:
        place, link = item
        wanted = {"env": folders[link.node.name], "address": address, "offer": offer, "place": place}
        wanted |= {"limit_s": limit_s, "most_bytes": 2 * size} if size else {}
        try:
            _share(link, "take", wanted, limit_s)
        except NexaError as error:
            return link.node.name, str(error)
        ctx.detail(f"{link.node.name}: {what} from {source.node.name}")
        return link.node.name, ""

    return dict(on_all(list(enumerate(takers)), take))


def _share(link: Link, act: str, message: Mapping[str, Any], limit_s: float) -> str:
    """Ask the node's program to offer or take a folder; returns its answer, of an offer the text as it is, which the
    takers check."""
    program = (bundle.root() / "ansible" / "roles" / "uv_env" / "files" / "share_env.py").read_text(encoding="utf-8")
    argv = (link.python, "-I", "-c", program, act)
    done = link.ssh.run(link.node, argv, json.dumps(message).encode(), timeout_s=limit_s + 30)
    if done.code:
        raise CommandFailed(f"{link.node.name}: {act} of {message['env']}", done)
    if len(done.out) > wire.ANSWER_BYTES:
        raise wire.Faulty(link.node.name, "what it offers", "it is too long")
    return done.out.decode(errors="replace")
