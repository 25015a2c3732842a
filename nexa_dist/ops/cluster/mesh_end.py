"""The end of a mesh: rented nodes are logged out of the tailnet, and from hosts that stay all of it is taken away."""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.cluster.mesh import AS_ROOT, JOINED_BY_US, KEY_FILE, meshes, tag
from nexa_dist.ops.context import Context
from nexa_dist.plan.inventory import groups, inventory
from nexa_dist.run import bundle, tailscale
from nexa_dist.run.ansible import run_playbook
from nexa_dist.run.ssh import connections
from nexa_dist.run.ssh.connections import Ssh
from nexa_dist.run.ssh.options import SSH_OPTIONS
from nexa_dist.run.workspace import ClusterFolder

LOGOUT_S = 10.0
LOGOUT = f"[ -e {JOINED_BY_US} ] || {{ echo theirs; exit 0; }}; timeout {LOGOUT_S - 2:.0f} tailscale logout"


@dataclass(frozen=True)
class Left:
    """Result of the nodes' leaving the mesh: `told` for the receipt, and what could not be taken away from hosts that
    stay."""

    told: dict[str, list[str]] = field(default_factory=dict)
    undone: tuple[str, ...] = ()


def leave(ctx: Context, folder: ClusterFolder, made: Cluster | None, temporary: str = "") -> Left:
    """Takes the nodes out of the mesh before they end, or are given back. `made`: what is known of the cluster;
    `temporary`: Ansible's folder on hosts that stay. An ephemeral device that is gone vanishes within the hour."""
    told: dict[str, list[str]] = {}
    try:
        joined_to = meshes(folder)
    except NexaError as error:
        ctx.say(f"warning: what is left in a tailnet goes by itself within the hour: {error}")
        joined_to = {}
    if names := joined_to.get("tailscale"):
        with ctx.phase("tailscale: logout"), folder.journalled("tailscale logout"):
            told = _log_all_out(ctx, names, made)
    if made is None or made.traits.makes:
        return Left(told)
    undone = [_taken_away(ctx, folder, made, mesh, temporary) for mesh in joined_to]
    return Left(told, tuple(said for said in undone if said))


def _taken_away(ctx: Context, folder: ClusterFolder, made: Cluster, mesh: str, temporary: str) -> str:
    """Removes a mesh from hosts that stay. Answers what kept it from being done; empty when it is."""
    variables = {"nexa_mesh": mesh, "nexa_mesh_key_file": KEY_FILE, "nexa_mesh_mark": JOINED_BY_US}
    hosts = inventory(made, dict.fromkeys((node.name for node in made.nodes), "/"), variables)
    hosts["all"]["children"] = groups([node.name for node in made.nodes], (), "wireguard")
    with ctx.phase(f"leave {mesh}"), folder.journalled("leave mesh"), connections.session(ctx.runner, made) as ssh:
        hosts["all"]["vars"]["ansible_remote_tmp"] = temporary or f"{ssh.sockets}/ansible"
        args = shlex.join(f"-o{option}" for option in (*SSH_OPTIONS, f"ControlPath={ssh.sockets}/%C"))
        playbook = bundle.root() / "playbooks" / "mesh_leave.yml"
        try:
            run_playbook(playbook, folder.path / "ansible", hosts, args, ctx.detail)
        except NexaError as error:
            return str(error).removeprefix("bootstrap failed: ")
    return ""


def _log_all_out(ctx: Context, names: dict[str, str], made: Cluster | None) -> dict[str, list[str]]:
    """Log out each node by itself; then delete by tag and name who is still there, also one that a killed provision had
    let in. The cluster's end never waits for it."""
    everyone = made.nodes if made else ()
    said: dict[str, str] = {}
    if made:
        with connections.session(ctx.runner, made) as ssh, ThreadPoolExecutor(len(everyone)) as pool:
            said = dict(pool.map(lambda node: (node.name, _log_out(ssh, node)), everyone))
    out = [name for name, how in said.items() if how == "out"]
    silent = [name for name in names if said.get(name, "silent") == "silent"]
    node_of = {name: node for node, name in names.items()}
    try:
        tailnet = tailscale.open_tailnet(os.environ)
        if tailnet is None and silent:
            raise NexaError("no OAuth client in the environment")
        deleted = [node_of[name] for name in tailnet.delete_all(tag(), list(node_of))] if tailnet else []
    except NexaError as error:
        ctx.say(f"warning: not taken out of the tailnet: {', '.join(silent) or 'nobody known'}: {error}")
        return {"logged_out": out, "deleted": [], "left_to_expire": silent}
    return {"logged_out": out, "deleted": deleted, "left_to_expire": [] if tailnet else silent}


def _log_out(ssh: Ssh, node: Node) -> Literal["out", "theirs", "silent"]:
    """Log a node out of the tailnet: logged out, in a tailnet of its own and left there, or silent."""
    try:
        done = ssh.run(node, ("sh", "-c", AS_ROOT, "sh", LOGOUT), timeout_s=LOGOUT_S)
    except NexaError:
        return "silent"
    if done.code:
        return "silent"
    return "theirs" if b"theirs" in done.out else "out"
