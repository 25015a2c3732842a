"""Nodes that are lost: whether the provider knows, and others in their place.

What makes nodes is imported when one is lost: that takes as long as the rest of a launch's own work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.plan.lost import CloudWord


def possible(ctx: Context, cluster: Cluster) -> bool:
    """Whether a lost node can be made anew from here."""
    return cluster.provider != "static" and ctx.workspace.cluster(cluster.name).json.exists()


def cloud_says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """What is known of a node's machine by who made it, and in words; ("", "") when that is nobody. Raises NexaError
    when it cannot be asked: it has not said then that the node is dead."""
    if cluster.provider == "local":
        from nexa_dist.ops import local

        state = local.machine(ctx.workspace.cluster(cluster.name), node.name)
        words: dict[str, CloudWord] = {"off": "off", "frozen": "unwell", "on": "works"}
        return words[state], f"its machine is {state}"
    if cluster.provider != "aws":
        return "", ""
    from nexa_dist.ops.site import known_site
    from nexa_dist.run.aws import Cloud

    site = known_site(ctx.workspace.cluster(cluster.name))
    if not site or not node.instance_id:
        return "", ""
    cloud, said = Cloud(site.region), f"its instance {node.instance_id} is "
    state = cloud.state(node.instance_id)
    if state not in ("pending", "running"):
        return "forgotten" if state == "unknown" else "off", f"{said}{state}"
    try:
        failed = cloud.failed_check(node.instance_id)
    except NexaError as error:  # a right that is not needed for anything else
        ctx.detail(f"{node.name}: {error}")
        failed = ""
    return ("unwell", failed) if failed else ("runs", f"{said}{state}")


def is_off(ctx: Context, cluster: Cluster, node: Node) -> bool:
    """Whether the cloud says that the machine is off: nothing of a run is left on it then."""
    try:
        return cluster.provider == "aws" and cloud_says(ctx, cluster, node)[0] in ("off", "forgotten")
    except NexaError:
        return False


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
