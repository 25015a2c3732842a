"""Nodes that are lost: whether the provider knows, and others in their place.

What makes nodes is imported when one is lost: that takes as long as the rest of a launch's own work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.plan.ranks import subset


def possible(ctx: Context, cluster: Cluster) -> bool:
    """Tell whether a lost node can be made anew from here."""
    return cluster.traits.replaces and ctx.workspace.cluster(cluster.name).json.exists()


def make_anew(ctx: Context, cluster: Cluster, names: Sequence[str]) -> Cluster:
    """The cluster, or the part of it that a run has, with other machines in the place of the named nodes. The old ones
    are ended first: what cannot be reached may still run, and must neither cost nor write. Raises NexaError, also when
    there is no capacity.
    """
    from nexa_dist.config.load import load_cluster
    from nexa_dist.ops.cluster.provision import provision

    folder = ctx.workspace.cluster(cluster.name)
    config = load_cluster(folder.path / "config.json")
    made = provision(dataclasses.replace(ctx, brief=True), config, lost=names)
    return subset(made, [node.name for node in cluster.nodes])


def without(cluster: Cluster, lost: Sequence[str]) -> Cluster:
    """The nodes that are left, in their order."""
    return dataclasses.replace(cluster, nodes=tuple(node for node in cluster.nodes if node.name not in lost))
