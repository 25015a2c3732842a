"""The mesh around the bootstrap: what the nodes are asked, the keys that they join with, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan import mesh as planned
from nexa_dist.plan import told as checked
from nexa_dist.plan.mesh import Seat
from nexa_dist.run import files, tailscale
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh import connections, keys
from nexa_dist.run.ssh.connections import Ssh
from nexa_dist.run.ssh.known_hosts import settings
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.shape import table, text

TAG = "tag:nexa"
"""NEXA_TAILSCALE_TAG names another. The OAuth client must own it."""
KEY_FILE = "/run/nexa/tailscale.key"
JOINED_BY_US = "/var/lib/nexa-tailscale.joined"
"""The role writes it before `tailscale up`: what a host had joined by itself is never logged out."""
ASK = f"""\
ip -4 -o addr show | while read -r _ device _ network _; do
  case $device in lo | {planned.INTERFACE}) ;; *) echo "network $network" ;; esac
done
device=$(ip -4 route show default | sed -n '1s/.* dev \\([^ ]*\\).*/\\1/p')
echo "mtu $(cat "/sys/class/net/${{device:-none}}/mtu" 2>/dev/null || echo {planned.USUAL_MTU})"
"""
AS_ROOT = 'if [ "$(id -u)" = 0 ]; then exec sh -c "$1"; else exec sudo -n sh -c "$1"; fi'
PUT_KEY = f"umask 077; mkdir -p {os.path.dirname(KEY_FILE)} && cat >{KEY_FILE}.new && mv {KEY_FILE}.new {KEY_FILE}"
DROP_KEY = f"rm -f {KEY_FILE}.new {KEY_FILE}"


def with_mesh(config: ClusterConfig, made: Cluster) -> Cluster:
    """The cluster with its ranks on the mesh, where they belong there and the addresses are ours to give."""
    if config.mesh != "wireguard":
        return made
    own = planned.addresses(config)
    return planned.over_mesh(made, own) if planned.ranks_use_mesh(config) else made


@contextlib.contextmanager
def joining(
    ctx: Context, folder: ClusterFolder, config: ClusterConfig, made: Cluster, only: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Ansible's variables for the mesh, and what a node needs to join it, for as long as the bootstrap takes. `only`:
    the nodes that are set up (none: all)."""
    if config.mesh == "none":
        yield {}
        return
    names = hostnames(ctx, folder.name, made)
    files.write_json(meshes_file(folder), {**meshes(folder), config.mesh: names})  # before anything is done for it
    with connections.session(ctx.runner, made) as ssh:
        if config.mesh == "wireguard":
            seats = connections.on_all(made.nodes, lambda node: _seat(ssh, node))
            yield planned.wireguard(config, seats)
            return
        wanted = [node for node in made.nodes if not only or node.name in only]
        try:
            with ctx.phase("tailscale: keys"), folder.journalled("tailscale keys", nodes=[n.name for n in wanted]):
                _hand_out_keys(ctx, ssh, [node for node in wanted if not in_tailnet(ssh, node)], names)
            yield {
                "nexa_mesh": "tailscale",
                "nexa_mesh_names": names,
                "nexa_mesh_tag": tag(),
                "nexa_mesh_key_file": KEY_FILE,
                "nexa_mesh_mark": JOINED_BY_US,
            }
        finally:  # the role removes it too; this is for a play that never came so far
            with contextlib.suppress(NexaError):
                connections.on_all(wanted, lambda node: as_root(ssh, node, DROP_KEY))


def joined(ctx: Context, folder: ClusterFolder, config: ClusterConfig, made: Cluster) -> Cluster:
    """The cluster as the tailnet made it: ranks on it where they belong there, and reached over it where we are in."""
    if config.mesh != "tailscale":
        return made
    with connections.session(ctx.runner, made) as ssh:
        own = checked.tailnet(connections.by_node(made.nodes, lambda node: _tailnet_address(ssh, node)))
    if planned.ranks_use_mesh(config):
        return planned.over_mesh(made, own)
    if not set(own.values()) <= _seen_from_here(ctx):
        return made
    reached = replace(made, nodes=tuple(replace(node, address=own[node.name]) for node in made.nodes))
    keys.write_ssh_config(folder.ssh, reached.nodes)  # known by name: the pinned host keys stay what they are
    return reached


MESHES = table(text(40), table(text(200), text(300), 10_000), 10)


def meshes_file(folder: ClusterFolder) -> Path:
    """File of all meshes that the nodes ever joined, whatever cluster.yaml says by now: names in the tailnet by node,
    by mesh."""
    return folder.path / "mesh.json"


def meshes(folder: ClusterFolder) -> dict[str, dict[str, str]]:
    """Raises NexaError when the file is damaged."""
    path = meshes_file(folder)
    return dict(files.read_shape(path, MESHES)) if path.exists() else {}


def _hand_out_keys(ctx: Context, ssh: Ssh, strangers: Sequence[Node], names: dict[str, str]) -> None:
    """A key for each, over ssh into a file that only root reads: never in an argument, never in Ansible's files."""
    if not strangers:
        return
    given, tailnet = os.environ.get("TS_AUTHKEY", ""), tailscale.open_tailnet(os.environ)
    if tailnet is None and not given:
        raise UsageError("mesh tailscale needs a key for each node", hint=tailscale.NO_CREDENTIALS)

    def hand_out(node: Node) -> None:
        key = tailnet.mint(tag(), names[node.name]) if tailnet else given
        as_root(ssh, node, PUT_KEY, key.encode() + b"\n")

    connections.on_all(strangers, hand_out)
    ctx.detail(f"{len(strangers)} keys, {'minted' if tailnet else 'as given in TS_AUTHKEY'}")


def as_root(ssh: Ssh, node: Node, script: str, stdin: bytes = b"") -> None:
    """A script of ours as root. Raises CommandFailed in the script's own words."""
    done = ssh.run(node, ("sh", "-c", AS_ROOT, "sh", script), stdin)
    if done.code:
        raise CommandFailed(f"{node.name}: as root", done, hint="a mesh needs root, or sudo without a password")


def tag() -> str:
    return os.environ.get("NEXA_TAILSCALE_TAG") or TAG


def hostnames(ctx: Context, cluster: str, made: Cluster) -> dict[str, str]:
    """Names in the tailnet by node name."""
    return {node.name: planned.hostname(cluster, node.name, our_tag(ctx)) for node in made.nodes}


def in_tailnet(ssh: Ssh, node: Node) -> bool:
    told = ssh.run(node, ("sh", "-c", "command -v tailscale >/dev/null && tailscale status --json --peers=false"))
    try:
        return bool(json.loads(told.out or b"{}").get("BackendState") == "Running")
    except (ValueError, AttributeError):
        return False


def _tailnet_address(ssh: Ssh, node: Node) -> str:
    told = ssh.run(node, ("tailscale", "ip", "-4"))
    if told.code or not told.out.strip():
        raise CommandFailed(f"{node.name}: tailscale ip", told)
    return told.out.decode(errors="replace").split()[0]


def _seen_from_here(ctx: Context) -> set[str]:
    """Addresses of the tailnet's machines, when this machine is in it; nothing otherwise."""
    told = ctx.runner.run(("tailscale", "status", "--json"), timeout_s=10)
    try:
        status = json.loads(told.out or b"{}") if told.code == 0 else {}
        peers = (status.get("Peer") or {}).values() if status.get("BackendState") == "Running" else ()
        return {address for peer in peers for address in peer.get("TailscaleIPs") or ()}
    except (ValueError, AttributeError):
        return set()


def _seat(ssh: Ssh, node: Node) -> Seat:
    told = ssh.run(node, ("sh", "-c", ASK))
    if told.code:
        raise CommandFailed(f"{node.name}: asking for its networks", told, hint="the mesh needs iproute2 on the node")
    lines = [line.split() for line in told.out.decode(errors="replace").splitlines()]
    said = [(words[0], words[1]) for words in lines if len(words) == 2]
    networks = tuple(value for word, value in said if word == "network")
    mtu = checked.mtu(node.name, next((value for word, value in said if word == "mtu"), planned.USUAL_MTU))
    if not ssh.cluster.traits.users_ssh:
        return Seat(node.name, node.address, private=node.private_address, mtu=mtu, networks=networks)
    known = settings(ssh, node)
    jump = any(known.get(word, "none") != "none" for word in ("proxyjump", "proxycommand"))
    return Seat(node.name, known.get("hostname", node.address), jump=jump, mtu=mtu, networks=networks)
