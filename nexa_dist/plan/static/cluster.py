"""The user's own hosts as a cluster: nothing was provisioned, so the file is all there is to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.model import Cluster, Node
from nexa_dist.plan.made import at_home, cluster_of, in_environment


def static_cluster(config: ClusterConfig, folder: PurePath) -> Cluster:
    """`folder` is where the file lies: `ssh_config` is relative to it. Defaults lie in the user's home there."""
    nodes = (
        Node(
            name=host.name or f"n{index}",
            address=host.host,
            gpus=host.gpus,
            port=host.port or 22,
            user=host.user or "",
            price_usd_per_hour=host.price_usd_per_hour or 0.0,
        )
        for index, host in enumerate(config.cluster or ())
    )
    ssh_config = str(folder / config.ssh_config) if config.ssh_config else ""
    return cluster_of(config, nodes, at_home(config), ssh_config=ssh_config)


OLDEST_PYTHON = (3, 11)
"""Oldest Python with which the locked training environment can be made."""


def settled(
    users: Cluster, config: ClusterConfig, addresses: Mapping[str, str], ssh_config: str, env_hash: str
) -> Cluster:
    """cluster.json once the hosts are provisioned: reached by the adopted keys, training in the made environment.

    `addresses` by node name are those behind the user's names for the hosts, which the other hosts do not know.
    """
    nodes = (
        replace(node, private_address=addresses[node.name] if addresses[node.name] != node.address else "")
        for node in users.nodes
    )
    return in_environment(cluster_of(config, nodes, users.layout, ssh_config=ssh_config), env_hash)


def judge(looks: Mapping[str, Mapping[str, Any]], install: bool) -> list[str]:
    """Faults that keep these hosts from being provisioned, by what each said when it was looked at. `install`: missing
    packages are no fault, since they will be installed."""
    faults: list[str] = []
    accounts: dict[str, str] = {}
    for name, look in looks.items():
        faults += [f"{name}: {fault}" for fault in look["faults"]]
        version = ".".join(map(str, look["version"][:2]))
        if tuple(look["version"][:2]) < OLDEST_PYTHON:
            oldest = ".".join(map(str, OLDEST_PYTHON))
            faults.append(f"{name}: {look['python']} is {version}, and {oldest} is needed: name another with python:")
        if look["lacks"] and not install:
            packages = " ".join(look["lacks"])
            faults.append(f"{name}: missing: {packages} (hint: sudo apt-get install -y {packages})")
        first = accounts.setdefault(look["account"], name)
        if first != name:
            faults.append(f"{name}: the same account ({look['user']}) on the same machine as {first}")
    versions = {name: ".".join(map(str, look["version"][:2])) for name, look in looks.items()}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        faults.append(f"python differs between hosts: {listed}; name one that all have with python:")
    return faults
