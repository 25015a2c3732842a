"""cluster.json of the nodes that a provider has: what the cluster's file says of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan.ranks import endpoint

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig


def folders(config: ClusterConfig, python: str, scratch: str, shared: str, durable: str) -> Layout:
    """Folders of a node: those of the file, else these."""
    return Layout(python, config.scratch or scratch, config.shared or shared, config.durable or durable)


def at_home(config: ClusterConfig) -> Layout:
    """Folders below the home of the login user, on hosts that nobody has set up for us."""
    return folders(config, config.python, *(f"~/.nexa/{name}" for name in ("scratch", "shared", "durable")))


def cluster_of(config: ClusterConfig, nodes: Iterable[Node], layout: Layout, **more: Any) -> Cluster:
    """The cluster, with the rendezvous on its first node. `more` are other fields of it."""
    found = tuple(nodes)
    rdzv = config.rdzv or endpoint(found[0], config.rdzv_port)
    return Cluster(config.name or "hosts", config.provider, found, layout, rdzv=rdzv, rdzv_backend=config.rdzv_backend,
                   **more)  # fmt: skip


def in_environment(cluster: Cluster, env_hash: str) -> Cluster:
    """The cluster with the interpreter of this environment, which lies in the shared folder."""
    python = f"{cluster.layout.shared}/envs/{env_hash}/bin/python"
    return replace(cluster, env_hash=env_hash, layout=replace(cluster.layout, python=python))
