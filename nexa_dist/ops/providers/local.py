"""The nodes of a local cluster, made and ended. Keys first, so that host keys are pinned before the first contact."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.light import env_hash
from nexa_dist.ops.providers.contract import Made, Planned, Wish
from nexa_dist.ops.providers.local_nodes import answers, made_nodes
from nexa_dist.ops.providers.local_nodes import usage as usage  # of the contract
from nexa_dist.plan import local
from nexa_dist.plan.health.lost import CloudWord
from nexa_dist.run import bundle
from nexa_dist.run.ssh import keys
from nexa_dist.run.terraform.settings import binary
from nexa_dist.run.terraform.stack import Terraform, TerraformFailed
from nexa_dist.run.workspace import ClusterFolder

TRIES = 3
TAKEN = re.compile(r"(127(?:\.\d+){3}:\d+) is taken by")
"""Message of host.py about a port that is taken."""


def shared_folder() -> str:
    """`$NEXA_SHARED` of local nodes: caches that outlive clusters (environments, code, prepared data)."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(os.environ.get("NEXA_SHARED") or Path(cache) / "nexa").absolute())


def terraform_of(ctx: Context, folder: ClusterFolder) -> Terraform:
    return Terraform(ctx.runner, binary(ctx.workspace.root), folder.terraform, "local")


def make(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Made:
    """The nodes. One that is lost, or that Terraform believes in and that is off, is made anew."""
    wish.begin()
    terraform = terraform_of(ctx, folder)
    terraform.settle(ctx.detail, interrupt=False)
    names = config.node_names
    with ctx.phase(f"terraform: {len(names)} nodes"), folder.journalled("create", nodes=names):
        _apply(ctx, folder, config, terraform)
        rows = terraform.outputs()["nodes"]
        off = [r["name"] for r in rows if r["name"] in wish.lost or machine(folder, r["name"]) == "off"]
        if off:  # Terraform's state says they exist; a reboot of this machine says they do not
            ctx.detail(f"off, made anew: {', '.join(off)}")
            _apply(ctx, folder, config, terraform, [f'module.node["{name}"].terraform_data.node' for name in off])
    outputs = terraform.outputs()
    made = local.cluster(
        config,
        outputs,
        ssh_config=str(folder.ssh_config),
        shared=config.shared or shared_folder(),
        durable=config.durable or str(ctx.workspace.root / ".nexa" / "durable"),
        env_hash=env_hash(f"{sys.version_info[0]}.{sys.version_info[1]}"),
        created_unix=folder.load().created_unix if folder.json.exists() else ctx.now(),
    )
    keys.write_ssh_config(folder.ssh, made.nodes)
    return Made(made, {row["name"]: row["home"] for row in outputs["nodes"]}, variables())


def _apply(
    ctx: Context, folder: ClusterFolder, config: ClusterConfig, terraform: Terraform, replace: Sequence[str] = ()
) -> None:
    """A node whose port another program took, since it was chosen or while the node was off, gets another one."""
    taken: list[str] = []
    for attempt in range(TRIES):
        prepare(ctx, folder, config, terraform, taken)
        try:
            terraform.apply(ctx.detail, replace=replace)
            break
        except TerraformFailed as error:
            taken = TAKEN.findall(str(error))
            if not taken or attempt == TRIES - 1:
                raise
        ctx.detail(f"in use by another program, choosing again: {', '.join(taken)}")
        replace = ()  # ended already


def prepare(
    ctx: Context, folder: ClusterFolder, config: ClusterConfig, terraform: Terraform, taken: Collection[str] = ()
) -> None:
    """Keys, variables and the stack, on this machine's disk. No node keeps one of the addresses that are `taken`."""
    keys.ensure_cluster_keys(ctx.runner, folder.ssh, folder.name, config.node_names)
    ports = _ports(folder, config.node_names, taken)
    made = local.tfvars(config, ports, str(folder.path / "nodes"), str(folder.ssh), base_python())
    terraform.prepare(bundle.root() / "terraform", made)


def variables() -> dict[str, str]:
    """Ansible variables: these nodes build on this machine's Python, wheels and cache."""
    found = {
        "nexa_python": base_python(),
        "ansible_python_interpreter": base_python(),
        "nexa_uv_find_links": os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or "",
    }
    if os.environ.get("UV_CACHE_DIR"):
        found["nexa_uv_cache"] = os.environ["UV_CACHE_DIR"]
    return found


def base_python() -> str:
    """The interpreter below our own virtual environment: what the nodes of this machine build on."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def _ports(folder: ClusterFolder, names: Sequence[str], taken: Collection[str]) -> dict[str, int]:
    """A port for each node: the one it has, else a free one (and with a damaged file, new ones: new nodes)."""
    known: dict[str, int] = {}
    with contextlib.suppress(NexaError):
        rows = made_nodes(folder)
        known = {row["name"]: row["port"] for row in rows if f"{row['address']}:{row['port']}" not in taken}
    return {name: known.get(name) or free_port(local.address_of(i)) for i, name in enumerate(names)}


def free_port(address: str) -> int:
    """None that the kernel gives to connections: a node that is off for a while must find its port free."""
    for port in random.sample(local.PORTS, 50):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind((address, port))
            return port
    raise NexaError(
        f"no free port on {address} from {local.PORTS.start} to {local.PORTS.stop - 1}",
        hint="is every address of 127.0.0.0/8 this machine's own?",
    )


def machine(folder: ClusterFolder, name: str) -> str:
    """`on`, `frozen` or `off`: what this machine says of the parent of all of a node's processes (host.py), whatever
    the network says."""
    try:
        told = json.loads((folder.path / "nodes" / name / "daemon.json").read_bytes())
        stat = Path(f"/proc/{int(told['pid'])}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError, TypeError, KeyError):
        return "off"
    if (int(stat[19]), boot) != (told.get("start_ticks"), told.get("boot_id")) or stat[0] in "ZX":
        return "off"
    return "frozen" if stat[0] in "Tt" else "on"


def says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """State of a node by this machine's process table."""
    state = machine(ctx.workspace.cluster(cluster.name), node.name)
    words: dict[str, CloudWord] = {"off": "off", "frozen": "unwell", "on": "works"}
    return words[state], f"its machine is {state}"


def plan(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Planned:
    terraform = terraform_of(ctx, folder)
    terraform.settle(ctx.detail, interrupt=False)
    prepare(ctx, folder, config, terraform)
    with ctx.phase("terraform: plan"):
        return Planned(terraform, terraform.plan())


def proof(receipt: Mapping[str, Any]) -> str:
    return "0 resources, 0 processes, 0 listening ports left"


def destroy(ctx: Context, folder: ClusterFolder, scope: Any = None) -> dict[str, Any]:
    """Ends the nodes. Answers what was destroyed and swept, and what is left of resources, ports and processes."""
    destroyed = _terraform_destroy(ctx, folder)
    with ctx.phase("sweep"), folder.journalled("sweep"):
        swept = _sweep(ctx, folder)
    resources = terraform_of(ctx, folder).resources() if folder.terraform.exists() else []
    left = {"resources": resources, "listening": _listening(ctx, folder), "processes": _sweep(ctx, folder)}
    nodes = [{key: node[key] for key in ("name", "address", "port")} for node in _known_nodes(ctx, folder)]
    return {"nodes": nodes, "destroyed": destroyed, "swept": swept, "left": left}


def _terraform_destroy(ctx: Context, folder: ClusterFolder) -> list[str]:
    terraform = terraform_of(ctx, folder)
    if not terraform.chdir.exists():
        return []
    terraform.settle(ctx.detail, interrupt=True)
    with ctx.phase("terraform: destroy"), folder.journalled("terraform destroy"):
        try:
            resources = terraform.resources()
        except NexaError as error:  # a torn state: the sweep does without
            ctx.detail(f"the state cannot be read, sweeping instead: {error}")
            with contextlib.suppress(FileNotFoundError):
                terraform.state.rename(terraform.state.with_suffix(".torn"))
            return []
        for attempt in range(TRIES if resources else 0):
            try:
                terraform.destroy(ctx.detail)
                break
            except NexaError as error:
                if attempt == TRIES - 1:
                    raise StillRunning(str(error), hint=error.hint) from error
                ctx.detail(f"try {attempt + 1} of {TRIES} failed, again: {error}")
    return resources


def _sweep(ctx: Context, folder: ClusterFolder) -> list[dict[str, Any]]:
    """Ends what a lost state or a killed command left: found by its mark, never by name. Answers what it ended."""
    nodes = folder.path / "nodes"
    if not nodes.is_dir():
        return []
    host = bundle.root() / "terraform" / "modules" / "local_node" / "host.py"
    swept = ctx.runner.run((sys.executable, "-I", str(host), "sweep", str(nodes)), timeout_s=120)
    if swept.code:
        raise StillRunning(f"the sweep failed: {swept.tail()}", hint="run nexa teardown again")
    return list(json.loads(swept.out))


def _known_nodes(ctx: Context, folder: ClusterFolder) -> list[dict[str, Any]]:
    """Nodes as Terraform's outputs know them, for the end of a cluster, which does without."""
    try:
        return made_nodes(folder)
    except NexaError as error:
        ctx.say(f"warning: the nodes are not known by name, and were ended by their mark: {error}")
        return []


def _listening(ctx: Context, folder: ClusterFolder) -> list[str]:
    rows = _known_nodes(ctx, folder)
    return [f"{r['address']}:{r['port']}" for r in rows if answers(folder, r["name"], r["address"], r["port"])]
