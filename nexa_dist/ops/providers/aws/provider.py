"""Provider aws, by the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import EXIT_FAILED, NexaError, StillRunning
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws import end
from nexa_dist.ops.providers.aws import record_usage as aws_record_usage
from nexa_dist.ops.providers.aws.gang import known_offer, open_gang
from nexa_dist.ops.providers.aws.make import make
from nexa_dist.ops.providers.contract import Planned, Wish
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.plan.aws import policy
from nexa_dist.plan.health.lost import CloudWord
from nexa_dist.run import bundle
from nexa_dist.run.aws import tagged
from nexa_dist.run.aws.client import Cloud
from nexa_dist.run.workspace import ClusterFolder

__all__ = ["destroy", "make", "plan", "proof", "says", "usage"]


def destroy(ctx: Context, folder: ClusterFolder, scope: Any = None) -> dict[str, Any]:
    """Destroy as `end.destroy` does; a cloud that cannot be asked has confirmed nothing."""
    try:
        return end.destroy(ctx, folder, scope)
    except NexaError as error:
        if error.code != EXIT_FAILED:
            raise
        raise StillRunning(f"not proven gone: {error}", hint=error.hint) from error


def proof(receipt: Mapping[str, Any]) -> str:
    return f"{len(receipt['resources'])} resources confirmed gone"


def says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """The instance's state, and its status checks."""
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


def usage(ctx: Context, folder: ClusterFolder) -> float:
    """Record when each instance was on, by the cloud's own books and clock."""
    scope = known_scope(folder)
    if scope is None:
        return ctx.now()
    shown, told = tagged.machines(scope.region, scope.owner, scope.cluster)
    things = [thing for thing in shown if thing.tags.get(tagged.WORKSPACE) == scope.workspace]
    now = ctx.now() if told is None else told
    aws_record_usage.record(ctx, folder, scope, things, now)
    return now


def plan(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Planned:
    """Plan of the first of `wish.offers`, or of the gang that is there."""
    gang = open_gang(ctx, folder, config, wish.hours)
    gang.terraform.settle(ctx.detail, interrupt=False)
    candidate = wish.offers[0] if wish.offers else known_offer(folder)
    variables = gang.variables(candidate, [offer.zone for offer in wish.offers])
    gang.terraform.prepare(bundle.root() / "terraform", variables)
    with ctx.phase("terraform: plan"):
        told = gang.terraform.plan()
    return Planned(gang.terraform, told, policy.findings(told), (gang.scope, candidate, variables))
