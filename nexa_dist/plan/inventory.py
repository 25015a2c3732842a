"""Ansible's inventory from a cluster. Every value is ours or was checked: Ansible would expand `{{ }}`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nexa_dist.model import Cluster, Node, absolute
from nexa_dist.plan.told import no_template


def inventory(
    cluster: Cluster,
    homes: Mapping[str, str],
    variables: Mapping[str, Any],
    each: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Hosts by node name, reached through the cluster's ssh_config. `homes` turns `~/` into absolute paths; `each` has
    variables of single hosts."""
    layout = cluster.layout
    folders = {"nexa_scratch": layout.scratch, "nexa_shared": layout.shared, "nexa_durable": layout.durable}
    hosts = {
        node.name: {
            **{name: absolute(path, homes[node.name]) for name, path in folders.items()},
            **(_reached(node) if cluster.traits.users_ssh else {}),
            **({"nexa_private_address": node.private_address} if cluster.traits.network else {}),
            **(each or {}).get(node.name, {}),
        }
        for node in cluster.nodes
    }
    shared = {"ansible_ssh_common_args": f"-F {shlex.quote(cluster.ssh_config)}", **variables}
    no_template(hosts)
    no_template(shared)
    return {"all": {"hosts": hosts, "vars": shared}}


def groups(names: Sequence[str], only: Sequence[str], mesh: str) -> dict[str, Any]:
    """Ansible's groups: who is set up already, and who takes part in making the mesh. With wireguard all do, since a
    new node has a new key."""
    settled = [name for name in names if only and name not in only]
    meshed = {"none": [], "wireguard": names, "tailscale": [name for name in names if name not in settled]}[mesh]
    return {
        "settled": {"hosts": {name: {} for name in settled}},
        "meshed": {"hosts": {name: {} for name in meshed}},
    }


def _reached(node: Node) -> dict[str, object]:
    """The user's own ssh settings go by the name that he gave the host, so it is not reached by the node's."""
    return {
        "ansible_host": node.address,
        **({"ansible_port": node.port} if node.port != 22 else {}),
        **({"ansible_user": node.user} if node.user else {}),
    }
