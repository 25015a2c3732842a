"""Ansible on the nodes, and the proof that each of them works. The same for every provider that makes nodes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.light import BACKEND, LOCK, TORCH
from nexa_dist.plan.inventory import groups, inventory
from nexa_dist.run import agent_file, bundle, files
from nexa_dist.run.ansible import run_playbook
from nexa_dist.run.ssh import connections
from nexa_dist.run.ssh.options import SSH_OPTIONS
from nexa_dist.run.workspace import ClusterFolder

PLAYBOOK = Path("playbooks/bootstrap.yml")


def bootstrap(
    ctx: Context,
    folder: ClusterFolder,
    made: Cluster,
    homes: Mapping[str, str],
    own: Mapping[str, Any],
    only: Sequence[str] = (),
    each: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Folders, environment, agent on every node, or on those in `only` (none: all). `own`: the provider's variables,
    and the mesh's; `each`: those of single nodes."""
    root = bundle.root()
    variables = {
        "nexa_provider": made.provider,
        "nexa_lock_file": str(root / LOCK),
        "nexa_torch_file": str(root / TORCH),
        "nexa_agent_file": str(_agent_file(folder)),
        "nexa_agent_sha256": agent_file.sha256(),
        "nexa_torch_backend": BACKEND,
        **own,
    }
    hosts = inventory(made, homes, variables, each)
    hosts["all"]["children"] = groups([node.name for node in made.nodes], only, own.get("nexa_mesh", "none"))
    with ctx.phase("ansible: bootstrap"), folder.journalled("bootstrap"), connections.session(ctx.runner, made) as ssh:
        # Ansible cannot work in a home whose path has a space or a quote, and a local node's may.
        if made.traits.one_machine:
            hosts["all"]["vars"]["ansible_remote_tmp"] = f"{ssh.sockets}/ansible"
        args = shlex.join(f"-o{option}" for option in (*SSH_OPTIONS, f"ControlPath={ssh.sockets}/%C"))
        changed = run_playbook(root / PLAYBOOK, folder.path / "ansible", hosts, args, ctx.detail)
        ctx.detail(f"{changed} tasks changed")


def _agent_file(folder: ClusterFolder) -> Path:
    """The agent on the disk, where Ansible can take it from."""
    path = folder.path / agent_file.NAME
    files.write_bytes(path, agent_file.content())
    return path
