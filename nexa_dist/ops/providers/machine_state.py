"""What whoever made a node says of its machine: on, off, unwell, or nothing."""

from __future__ import annotations

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.plan.health.lost import CloudWord


def cloud_says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """What is known of a node's machine by who made it, and in words; ("", "") when that is nobody. Raises NexaError
    when it cannot be asked: it has not said then that the node is dead."""
    if cluster.provider == "local":
        from nexa_dist.ops.providers import local

        state = local.machine(ctx.workspace.cluster(cluster.name), node.name)
        words: dict[str, CloudWord] = {"off": "off", "frozen": "unwell", "on": "works"}
        return words[state], f"its machine is {state}"
    if cluster.provider != "aws":
        return "", ""
    from nexa_dist.ops.providers.scope_file import known_scope
    from nexa_dist.run.aws.client import Cloud

    scope = known_scope(ctx.workspace.cluster(cluster.name))
    if not scope or not node.instance_id:
        return "", ""
    cloud, said = Cloud(scope.region), f"its instance {node.instance_id} is "
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
