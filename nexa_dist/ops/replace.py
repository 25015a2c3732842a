"""Nodes that are lost: whether the provider knows, and others in their place.

What makes nodes is imported when one is lost: that takes as long as the rest of a launch's own work.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context

ASK_EVERY_S = 4.0


def possible(ctx: Context, cluster: Cluster) -> bool:
    """Whether a lost node can be made anew from here."""
    return cluster.provider != "static" and ctx.workspace.cluster(cluster.name).json.exists()


def teller(ctx: Context, cluster: Cluster) -> Callable[[str], str]:
    """A function that tells why a silent node is dead for the provider; "" when it lives, or nobody knows."""
    asked: dict[str, float] = {}
    nodes = {node.name: node for node in cluster.nodes}

    def gone(name: str) -> str:
        if time.monotonic() - asked.get(name, -ASK_EVERY_S) < ASK_EVERY_S:
            return ""
        asked[name] = time.monotonic()
        try:
            return _dead(ctx, cluster, nodes[name])
        except NexaError as error:  # a cloud that cannot be asked has not said that the node is dead
            ctx.detail(f"{name}: {error}")
            return ""

    return gone


def is_off(ctx: Context, cluster: Cluster, node: Node) -> bool:
    """Whether the cloud says that the machine is off: nothing of a run is left on it then."""
    try:
        return cluster.provider == "aws" and bool(_dead(ctx, cluster, node))
    except NexaError:
        return False


def _dead(ctx: Context, cluster: Cluster, node: Node) -> str:
    if cluster.provider == "local":
        from nexa_dist.ops import local

        folder = ctx.workspace.cluster(cluster.name)
        return "" if local.answers(folder, node.name, node.address, node.port) else "its sshd is gone"
    if cluster.provider != "aws":
        return ""
    from nexa_dist.ops.site import known_site
    from nexa_dist.run.aws import Cloud

    site = known_site(ctx.workspace.cluster(cluster.name))
    if not site or not node.instance_id:
        return ""
    state = Cloud(site.region).state(node.instance_id)
    return "" if state in ("pending", "running") else f"its instance {node.instance_id} is {state}"


def make_anew(ctx: Context, cluster: Cluster, names: Sequence[str]) -> Cluster:
    """The cluster with other machines in the place of the named nodes. The old ones are ended first: what cannot be
    reached may still run, and must neither cost nor write. Raises NexaError, also when there is no capacity.
    """
    from nexa_dist.config.load import load_cluster
    from nexa_dist.ops.provision import provision

    folder = ctx.workspace.cluster(cluster.name)
    config = load_cluster(folder.path / "config.json")
    return provision(dataclasses.replace(ctx, brief=True), config, lost=names)


def without(cluster: Cluster, lost: Sequence[str]) -> Cluster:
    """The nodes that are left, in their order."""
    return dataclasses.replace(cluster, nodes=tuple(node for node in cluster.nodes if node.name not in lost))
