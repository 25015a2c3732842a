"""The local provider: every node is an sshd of its own on a loopback address of this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.model import Cluster, Node
from nexa_dist.plan.made import cluster_of, folders, in_environment

FIRST_HOST = 11
"""127.0.0.11 and on: away from 127.0.0.1, which other programs use."""
PORTS = range(20000, 32768)
"""Ports of the nodes' sshd: below those that Linux gives to outgoing connections."""


def address_of(index: int) -> str:
    """Loopback address of the node with this number."""
    return f"127.0.0.{FIRST_HOST + index}"


def tfvars(config: ClusterConfig, ports: Mapping[str, int], root: str, ssh_dir: str, python: str) -> dict[str, Any]:
    """Variables of terraform/stacks/local. `ports` by node name."""
    nodes = {
        name: {"address": address_of(i), "port": ports[name], "gpus": config.gpus_per_node}
        for i, name in enumerate(config.node_names)
    }
    return {
        "cluster": config.name,
        "nodes": nodes,
        "root": root,
        "ssh_dir": ssh_dir,
        "python": python,
        "max_s": math.ceil((config.max_hours or 0) * 3600),  # 0 is never
        "lease_s": round((config.lease_minutes or 0) * 60),
        "idle_s": round((config.idle_minutes or 0) * 60),
    }


def cluster(
    config: ClusterConfig,
    outputs: Mapping[str, Any],
    *,
    ssh_config: str,
    shared: str,
    durable: str,
    env_hash: str,
    created_unix: float,
) -> Cluster:
    """cluster.json from Terraform's outputs."""
    nodes = (
        Node(
            name=row["name"],
            address=row["address"],
            port=int(row["port"]),
            user=row["user"],
            gpus=int(row["gpus"]),
            price_usd_per_hour=config.price_usd_per_hour or 0.0,
        )
        for row in outputs["nodes"]
    )
    layout = folders(config, "", "~/scratch", shared, durable)
    return in_environment(cluster_of(config, nodes, layout, ssh_config=ssh_config, created_unix=created_unix), env_hash)
