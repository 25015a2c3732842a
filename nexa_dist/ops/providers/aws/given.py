"""Resources that the user already has and the cluster is put into, asked of the cloud once, before anything is made."""

from __future__ import annotations

from collections.abc import Sequence

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import UsageError
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws import given as plan
from nexa_dist.plan.aws.given import Given
from nexa_dist.run.aws import client as aws_client


def given(ctx: Context, config: ClusterConfig, region: str) -> Given:
    """Raises UsageError with all that speaks against it."""
    found, faults, nodes = Given(), list[str](), config.nodes or 0
    if config.subnets:
        found, faults, warnings = _subnets(config.subnets, region, nodes)
        for warning in warnings:
            ctx.say(f"warning: {warning}")
    elif config.vpc:
        faults = _vpc(ctx, config.vpc, config.vpc_cidr or "", region)
    if config.capacity_reservation:
        name = config.capacity_reservation
        row = aws_client.Cloud(region).reservation(name)
        zone = (row or {}).get("AvailabilityZone")
        if row and found.subnets and zone not in found.subnets:
            faults.append(f"capacity reservation {name} is in {zone}, where none of `subnets` is")
        reserved, why = plan.reserved(name, row, nodes, ctx.now())
        found, faults = plan.joined(found, reserved), faults + why
    if faults:
        raise UsageError("; ".join(faults), hint="nothing was made; mend the cluster's file, or what it names")
    return found


def changed(known: Given, config: ClusterConfig) -> str:
    """The key of the file that names something else than the living cluster was put into; empty when none does."""
    inside, named = set(known.subnets.values()), config.capacity_reservation or ""
    if not inside <= set(config.subnets or ()) or bool(inside) != bool(config.subnets):
        return "subnets"
    other = named.startswith("cr-") and named != known.reservation
    return "capacity_reservation" if other or bool(named) != bool(known.reservation) else ""


def _vpc(ctx: Context, vpc: str, cidr: str, region: str) -> list[str]:
    """Check the user's VPC; a user who may not look at it may still be allowed to use it."""
    what, here = f"looking at {vpc}", [{"Name": "vpc-id", "Values": [vpc]}]
    gate = [{"Name": "attachment.vpc-id", "Values": [vpc]}]
    try:
        return plan.vpc_faults(
            vpc,
            cidr,
            aws_client.rows(what, region, "describe_vpcs", "Vpcs[]", Filters=here),
            aws_client.rows(what, region, "describe_internet_gateways", "InternetGateways[]", Filters=gate),
            aws_client.rows(what, region, "describe_subnets", "Subnets[]", Filters=here),
        )
    except aws_client.Refused as error:
        ctx.say(f"warning: nobody looked whether vpc and vpc_cidr fit: {error}")
        return []


def _subnets(wanted: Sequence[str], region: str, nodes: int) -> tuple[Given, list[str], list[str]]:
    what = "looking at subnets"
    # As a filter: an unknown id is no error, and the others are still judged.
    ids = [{"Name": "subnet-id", "Values": list(wanted)}]
    subnets = aws_client.rows(what, region, "describe_subnets", "Subnets[]", Filters=ids)
    vpcs = [{"Name": "vpc-id", "Values": sorted({row["VpcId"] for row in subnets})}]
    tables = aws_client.rows(what, region, "describe_route_tables", "RouteTables[]", Filters=vpcs) if subnets else []
    return plan.into_subnets(wanted, subnets, tables, nodes)
