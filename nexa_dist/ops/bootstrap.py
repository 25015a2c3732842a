"""Ansible on the nodes, and the proof that each of them works. The same for every provider that makes nodes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.plan.inventory import inventory
from nexa_dist.plan.local import environment_hash
from nexa_dist.run import agentfile, bundle, files, nodes
from nexa_dist.run.ansible import run_playbook
from nexa_dist.run.workspace import ClusterFolder

LOCK = Path("docker/lock/train.txt")
TORCH = Path("docker/cuda_torch.txt")
BACKEND = "auto"


def env_hash(python: str) -> str:
    """Name of the training environment on nodes with this Python (major.minor)."""
    root = bundle.root()
    return environment_hash((root / LOCK).read_bytes(), (root / TORCH).read_bytes(), python, BACKEND)


def bootstrap(
    ctx: Context,
    folder: ClusterFolder,
    made: Cluster,
    homes: Mapping[str, str],
    own: Mapping[str, str],
    only: Sequence[str] = (),
) -> None:
    """Folders, environment, agent on every node, or on those in `only` (none: all). `own`: the provider's variables."""
    root = bundle.root()
    variables = {
        "nexa_lock_file": str(root / LOCK),
        "nexa_torch_file": str(root / TORCH),
        "nexa_agent_file": str(_agent_file(folder)),
        "nexa_agent_sha256": agentfile.sha256(),
        "nexa_torch_backend": BACKEND,
        **own,
    }
    nodes_wanted = tuple(node for node in made.nodes if not only or node.name in only)
    hosts = inventory(replace(made, nodes=nodes_wanted), homes, variables)
    with ctx.phase("ansible: bootstrap"), folder.journalled("bootstrap"), nodes.session(ctx.runner, made) as ssh:
        # Ansible cannot work in a home whose path has a space or a quote, and a local node's may.
        if made.provider == "local":
            hosts["all"]["vars"]["ansible_remote_tmp"] = f"{ssh.sockets}/ansible"
        args = shlex.join(f"-o{option}" for option in (*nodes.SSH_OPTIONS, f"ControlPath={ssh.sockets}/%C"))
        play = run_playbook(root / "playbooks" / "bootstrap.yml", folder.path / "ansible", hosts, args, ctx.detail)
        ctx.detail(f"{sum(play.changed.values())} tasks changed")


def _agent_file(folder: ClusterFolder) -> Path:
    """The agent on the disk, where Ansible can take it from."""
    path = folder.path / agentfile.NAME
    files.write_bytes(path, agentfile.content())
    return path


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
