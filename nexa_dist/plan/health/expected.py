"""Expected figures of a node, from what was rented and from the price book. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nexa_dist.model import Cluster, Node
from nexa_dist.plan.aws.prices import book

ONE_GBPS = 1.0


@dataclass(frozen=True)
class Expected:
    """Expected figures of one node. A figure of 0 expects nothing."""

    gpus: int = 0
    """GPUs that the instance type advertises; fewer, or none, is a fault."""
    ranks: int = 0
    """Ranks of a host that may have no GPU: as many GPUs as ranks if there are any."""
    efa: int = 0
    network_gbps: float = 0.0
    """The peak that the vendor lists."""
    floor_gbps: float = 0.0
    """Less than this between two nodes is a fault, whatever the others have."""
    own_machine: bool = True
    """False where all nodes are one machine, which others use too: no figure of its speed is a fault of a node."""


def expected(cluster: Cluster, node: Node, efa: bool = False) -> Expected:
    """`efa`: the cluster's file asks for Elastic Fabric Adapters."""
    if not cluster.traits.priced:
        return Expected(ranks=node.gpus, own_machine=not cluster.traits.one_machine)
    known = book().types.get(node.offer.split(" ")[0])
    if known is None:
        return Expected(gpus=node.gpus)
    return Expected(
        gpus=max(known.gpus, node.gpus),
        efa=known.efa_interfaces if efa else 0,
        network_gbps=known.network_gbps,
        # Even one TCP stream through the smallest of these types is faster.
        floor_gbps=ONE_GBPS,
    )
