"""A folder that one node has, to others over the network that is theirs alone: what comes into a cluster comes once.

The same program as the bootstrap's (ansible/roles/uv_env/files/share_env.py): a list of SHA-256 whose digest goes over
ssh, then the files; what a taker gets is what the list says, or nothing. The files themselves are not hidden from that
network: hosts of the user's own hand on where theirs is a private one, which their ranks already talk over.
"""

from __future__ import annotations

import ipaddress
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
PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
                                           "127.0.0.0/8", "fc00::/7", "::1/128")))  # fmt: skip
"""Networks that no stranger is in, a tailnet's among them."""


def hand_on(
    ctx: Context, source: Link, takers: Sequence[Link], folders: Mapping[str, str], what: str, size: int = 0
) -> dict[str, str]:
    """Hand folders on from one node to others; returns by name of each taker "", or why it has not got them: the caller
    then makes it there after all. `folders`: the folder's absolute path by node name; whole folders hold a file
    `.complete`. `what` is its name for people, `size` its bytes, where they may be more than an environment has."""
    if alone := _alone(source):
        return {link.node.name: alone for link in takers}
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
        wanted |= {"limit_s": limit_s, "most_bytes": 2 * size, "go_on": True} if size else {}
        try:
            _share(link, "take", wanted, limit_s)
        except NexaError as error:
            return link.node.name, str(error)
        ctx.detail(f"{link.node.name}: {what} from {source.node.name}")
        return link.node.name, ""

    return dict(on_all(list(enumerate(takers)), take))


def _alone(source: Link) -> str:
    """Why the nodes may not hand on, in words; empty where they may."""
    cluster, address = source.ssh.cluster, source.node.peer_address
    if cluster.traits.network:
        return ""
    if cluster.traits.one_machine:
        return ALONE
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"{ALONE}: {source.node.name} is known by a name, {address}, and not by a private address"
    inside = any(found in network for network in PRIVATE if network.version == found.version)
    return "" if inside else f"{ALONE}: {address} is a public address (mesh: wireguard makes one)"


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
