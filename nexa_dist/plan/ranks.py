"""Rank plan: which rank runs where, and where the ranks meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node, RdzvBackend


@dataclass(frozen=True)
class NodePlan:
    """The ranks `first_rank … first_rank + nproc - 1` run on `node`."""

    node: Node
    node_rank: int
    first_rank: int
    nproc: int


@dataclass(frozen=True)
class RankPlan:
    """Node order is the cluster's order, so rank 0 is on its first node, whatever the addresses are."""

    nodes: tuple[NodePlan, ...]
    rdzv_host: str
    rdzv_port: int
    rdzv_backend: RdzvBackend

    @property
    def world_size(self) -> int:
        return sum(plan.nproc for plan in self.nodes)

    def node_of(self, rank: int) -> str:
        """Name of the node that runs `rank`."""
        return next(p.node.name for p in self.nodes if p.first_rank <= rank < p.first_rank + p.nproc)


def subset(cluster: Cluster, names: Sequence[str]) -> Cluster:
    """The cluster as a run on these nodes alone sees it, in the cluster's order; whole without names. Raises UsageError
    for one that it has not."""
    known = [node.name for node in cluster.nodes]
    if wrong := next((name for name in names if name not in known), ""):
        raise UsageError(f"nodes: cluster {cluster.name} has no node {wrong!r}", hint=f"it has {', '.join(known)}")
    nodes = tuple(node for node in cluster.nodes if not names or node.name in names)
    # The endpoint of the file is on its first node.
    return replace(cluster, nodes=nodes, rdzv=cluster.rdzv if nodes[0] == cluster.nodes[0] else "")


def assign_ranks(cluster: Cluster, port: int, nproc_per_node: int | None = None) -> RankPlan:
    """Ranks in cluster order. `port` is used unless cluster.yaml fixes the rendezvous endpoint.

    Nodes with unlike GPU counts get unlike shares. Raises NexaError when `nproc_per_node` is more than a
    node has, and when c10d would sort the nodes into another order than the plan's.
    """
    plans: list[NodePlan] = []
    first = 0
    for node_rank, node in enumerate(cluster.nodes):
        nproc = nproc_per_node or node.gpus
        if nproc > node.gpus:
            raise NexaError(
                f"nproc_per_node is {nproc}, but node {node.name} takes {node.gpus} ranks",
                hint="lower nproc_per_node in train.yaml, or raise the node's gpus in cluster.yaml",
            )
        plans.append(NodePlan(node, node_rank, first, nproc))
        first += nproc
    host, fixed_port = split_endpoint(cluster.rdzv)
    plan = RankPlan(tuple(plans), host or cluster.nodes[0].peer_address, fixed_port or port, cluster.rdzv_backend)
    if plan.rdzv_backend == "c10d":
        _check_c10d_order(cluster)
    return plan


def _check_c10d_order(cluster: Cluster) -> None:
    """c10d ignores --node-rank and sorts the nodes by address *string* (torch 2.13, dynamic_rendezvous)."""
    addresses = [node.peer_address for node in cluster.nodes]
    if addresses != sorted(addresses):
        raise NexaError(
            f"rdzv_backend c10d would order the nodes {', '.join(sorted(addresses))}, not as the cluster lists them",
            hint="use rdzv_backend: static (the default), or list the hosts in that order",
        )


def endpoint(node: Node, port: int | None) -> str:
    """`host:port` on this node; empty without a port, so that a free one is chosen."""
    host = f"[{node.peer_address}]" if ":" in node.peer_address else node.peer_address
    return f"{host}:{port}" if port else ""


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or `host`; port 0 and host "" where they are missing."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.startswith("[")):
        return endpoint.strip("[]"), 0
    return host.strip("[]"), int(port)
