"""Ansible's inventory from a cluster. Every value is ours or was checked: Ansible would expand `{{ }}`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from nexa_dist.model import Cluster, absolute


def inventory(cluster: Cluster, homes: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Hosts by node name, reached through the cluster's ssh_config. `homes` turns `~/` into absolute paths."""
    layout = cluster.layout
    folders = {"nexa_scratch": layout.scratch, "nexa_shared": layout.shared, "nexa_durable": layout.durable}
    hosts = {
        node.name: {name: absolute(path, homes[node.name]) for name, path in folders.items()} for node in cluster.nodes
    }
    shared = {"ansible_ssh_common_args": f"-F {shlex.quote(cluster.ssh_config)}", **variables}
    return {"all": {"hosts": hosts, "vars": shared}}
