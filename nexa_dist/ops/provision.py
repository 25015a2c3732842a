"""nexa provision: Terraform makes the nodes, Ansible bootstraps them, and each one proves itself."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.paths import safe_path
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.plan import local
from nexa_dist.plan.inventory import inventory
from nexa_dist.run import bundle, files, keys, nodes
from nexa_dist.run.ansible import run_playbook
from nexa_dist.run.terraform import Terraform, binary
from nexa_dist.run.workspace import ClusterFolder

LOCK = Path("docker/lock/train.txt")
TORCH = Path("docker/cuda_torch.txt")
PASSED_ON = ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_CACHE_DIR")
"""Settings of the user's environment that become Ansible variables."""


def provision(ctx: Context, config: ClusterConfig) -> Cluster:
    """Makes the cluster, or brings it back to what the file says. Safe to run again, at any time."""
    if config.provider != "local":
        what = "has nothing to provision: its hosts are yours" if config.provider == "static" else "is not built yet"
        raise UsageError(
            f"provider {config.provider} {what}",
            hint="nexa run works on your own hosts as they are; provider: local makes a cluster on this machine",
        )
    _refuse_what_is_expanded(ctx)
    folder = ctx.workspace.cluster(config.name or "")
    with folder.locked("provision"):
        files.write_json(folder.path / "config.json", config.model_dump(mode="json"))
        terraform = make_nodes(ctx, folder, config)
        made = _from_outputs(folder, config, terraform.outputs())
        made = bootstrap(ctx, folder, made, terraform)
        with ctx.phase("health"), folder.journalled("health"):
            for line in prove(ctx, made):
                ctx.detail(line)
        if not folder.json.exists():
            folder.ledger("up", nodes=len(made.nodes), usd_per_hour=made.usd_per_hour)
        files.write_json(folder.json, made.to_json())
    return made


def _refuse_what_is_expanded(ctx: Context) -> None:
    """Raises UsageError, before anything is made, for a path or a setting of ours that Ansible would run as code."""
    for path in (ctx.workspace.root, Path(shared_folder()), bundle.root(), Path(sys.executable)):
        safe_path(path)
    for name in PASSED_ON:
        if any(mark in os.environ.get(name, "") for mark in ("{{", "{%", "{#")):
            raise UsageError(f"{name} contains a template that Ansible would run", hint=f"give {name} a plain value")


def shared_folder() -> str:
    """`$NEXA_SHARED` of local nodes: caches that outlive clusters (environments, code, prepared data)."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(os.environ.get("NEXA_SHARED") or Path(cache) / "nexa").absolute())


def terraform_of(ctx: Context, folder: ClusterFolder) -> Terraform:
    return Terraform(ctx.runner, binary(ctx.workspace.root), folder.terraform, "local")


def make_nodes(ctx: Context, folder: ClusterFolder, config: ClusterConfig) -> Terraform:
    """Keys first, so that host keys are pinned before the first contact; then Terraform."""
    terraform = terraform_of(ctx, folder)
    names = local.node_names(config.nodes or 0)
    keys.ensure_cluster_keys(ctx.runner, folder.ssh, folder.name, names)
    ports = _ports(terraform, names)
    variables = local.tfvars(config, ports, str(folder.path / "nodes"), str(folder.ssh), _base_python())
    with ctx.phase(f"terraform: {len(names)} nodes"), folder.journalled("terraform apply", nodes=names):
        terraform.prepare(bundle.root() / "terraform", variables)
        terraform.apply(ctx.detail)
        off = [row["name"] for row in terraform.outputs()["nodes"] if not _answers(row["address"], row["port"])]
        if off:  # Terraform's state says they exist; a reboot of this machine says they do not
            ctx.detail(f"not answering, made anew: {', '.join(off)}")
            terraform.apply(ctx.detail, replace=[f'module.node["{name}"].terraform_data.node' for name in off])
    return terraform


def bootstrap(ctx: Context, folder: ClusterFolder, made: Cluster, terraform: Terraform) -> Cluster:
    """Ansible over ssh: folders, environment, agent. Returns the cluster with its environment's hash."""
    root = bundle.root()
    find_links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
    variables = {
        "nexa_lock_file": str(root / LOCK),
        "nexa_torch_file": str(root / TORCH),
        "nexa_agent_file": str(nodes.AGENT_SOURCE),
        "nexa_python": _base_python(),
        "nexa_uv_find_links": find_links,
        "nexa_torch_backend": "auto",
    }
    if os.environ.get("UV_CACHE_DIR"):
        variables["nexa_uv_cache"] = os.environ["UV_CACHE_DIR"]
    homes = {row["name"]: row["home"] for row in terraform.outputs()["nodes"]}
    hosts = inventory(made, homes, variables)
    with ctx.phase("ansible: bootstrap"), folder.journalled("bootstrap"), nodes.session(ctx.runner, made) as ssh:
        # Ansible cannot work in a home whose path has a space or a quote, and this workspace's may.
        hosts["all"]["vars"] |= {
            "ansible_remote_tmp": f"{ssh.sockets}/ansible",
            "ansible_python_interpreter": _base_python(),
        }
        args = shlex.join(f"-o{option}" for option in (*nodes.SSH_OPTIONS, f"ControlPath={ssh.sockets}/%C"))
        play = run_playbook(root / "playbooks" / "bootstrap.yml", folder.path / "ansible", hosts, args, ctx.detail)
        ctx.detail(f"{sum(play.changed.values())} tasks changed")
    return made


def prove(ctx: Context, made: Cluster) -> list[str]:
    """Every node answers over its pinned key, runs the agent, and has the same versions as the others."""
    with nodes.session(ctx.runner, made) as ssh:
        links = nodes.connect(ssh)
        answers = nodes.on_all(
            links,
            lambda link: link.call("probe", message={"python": link.python, "scratch": link.path(made.layout.scratch)}),
        )
    versions = {(a.get("python"), a.get("torch")) for a in answers}
    said = [
        f"{link.node.name} {link.node.address}:{link.node.port}: python {a.get('python')}, torch {a.get('torch')}, "
        f"{a['free_bytes'] >> 30} GiB free"
        for link, a in zip(links, answers, strict=True)
    ]
    faults = [f"{link.node.name}: {a['error']}" for link, a in zip(links, answers, strict=True) if a.get("error")]
    if faults or len(versions) > 1:
        raise NexaError("the nodes are not healthy: " + "; ".join(faults or said), hint="nexa provision mends them")
    return said


def _from_outputs(folder: ClusterFolder, config: ClusterConfig, outputs: dict[str, Any]) -> Cluster:
    workspace = folder.path.parent.parent.parent
    root = bundle.root()
    env_hash = local.environment_hash(
        (root / LOCK).read_bytes(), (root / TORCH).read_bytes(), f"{sys.version_info[0]}.{sys.version_info[1]}", "auto"
    )
    made = local.cluster(
        config,
        outputs,
        ssh_config=str(folder.ssh_config),
        shared=config.shared or shared_folder(),
        durable=config.durable or str(workspace / ".nexa" / "durable"),
        env_hash=env_hash,
        created_unix=_created(folder),
    )
    keys.write_ssh_config(folder.ssh, made.nodes)
    return made


def _created(folder: ClusterFolder) -> float:
    return folder.load().created_unix if folder.json.exists() else time.time()


def _base_python() -> str:
    """The interpreter below our own virtual environment: what the nodes of this machine build on."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def _ports(terraform: Terraform, names: Sequence[str]) -> dict[str, int]:
    """A port for each node: the one it has, else a free one (and with a damaged file, new ones: new nodes)."""
    known: dict[str, int] = {}
    if terraform.variables.exists():
        with contextlib.suppress(NexaError, KeyError, TypeError, AttributeError, ValueError):
            known = {name: int(row["port"]) for name, row in files.read_json(terraform.variables)["nodes"].items()}
    return {name: known.get(name) or _free_port(local.address_of(i)) for i, name in enumerate(names)}


def _free_port(address: str) -> int:
    with socket.socket() as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


def node_of(cluster: Cluster, name: str) -> Node:
    """The node called `name`. Raises UsageError with the names there are."""
    for node in cluster.nodes:
        if node.name == name:
            return node
    raise UsageError(
        f"cluster {cluster.name} has no node {name!r}", hint=f"nodes: {', '.join(n.name for n in cluster.nodes)}"
    )
