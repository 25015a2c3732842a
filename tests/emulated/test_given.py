"""What a user already has, as a region tells it: VPC, subnets, capacity reservations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.providers.aws.capacity import survey
from nexa_dist.ops.providers.aws.given import given
from nexa_dist.plan.aws.given import Given
from nexa_dist.run.aws import client as aws_client
from tests.unit.cloud_server import HOME, NOW, Desk, Emulated, config, scope


def network(region: Emulated, *zones: str) -> tuple[str, list[str]]:
    """A VPC with a private subnet in each zone, whose way out is a NAT gateway."""
    ec2 = region.ec2
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{place}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for place, zone in enumerate(zones)
    ]
    address = ec2.allocate_address()["AllocationId"]
    nat = ec2.create_nat_gateway(SubnetId=subnets[0], AllocationId=address)["NatGateway"]["NatGatewayId"]
    (main,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    ec2.create_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    return vpc, subnets


def test_a_vpc_that_is_not_there_or_has_no_gateway_is_named(desk: Desk, emulated_region: Emulated) -> None:
    with pytest.raises(UsageError, match="vpc vpc-0123456789abcdef0 does not exist"):
        given(desk.ctx, config(vpc="vpc-0123456789abcdef0", vpc_cidr="10.0.64.0/20"), HOME)
    vpc, subnets = network(emulated_region, "us-east-1a")
    with pytest.raises(
        UsageError, match=rf"vpc {vpc} has no internet gateway.*is not free: {subnets[0]} has 10.0.0.0/24"
    ):
        given(desk.ctx, config(vpc=vpc, vpc_cidr="10.0.0.0/20"), HOME)
    gate = emulated_region.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    emulated_region.ec2.attach_internet_gateway(InternetGatewayId=gate, VpcId=vpc)
    assert given(desk.ctx, config(vpc=vpc, vpc_cidr="10.0.64.0/20"), HOME) == Given()


def test_who_may_not_look_is_told_and_goes_on(
    desk: Desk, emulated_region: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated_region.control.fault("error", call="DescribeVpcs", code="UnauthorizedOperation", status=403)
    assert given(desk.ctx, config(vpc="vpc-0123456789abcdef0", vpc_cidr="10.0.64.0/20"), HOME) == Given()
    emulated_region.control.clear()
    assert "nobody looked whether vpc and vpc_cidr fit" in desk.said[-1] and "UnauthorizedOp" in desk.said[-1]


def test_private_subnets_decide_the_zones(desk: Desk, emulated_region: Emulated) -> None:
    vpc, (a, b) = network(emulated_region, "us-east-1a", "us-east-1b")
    own = given(desk.ctx, config(subnets=[b, a]), HOME)
    assert own == Given(vpc=vpc, subnets={"us-east-1a": a, "us-east-1b": b}, public=False) and desk.said == []
    wanted = config(subnets=[b], offers=[{"type": "g5.12xlarge"}], price_usd_per_hour=5.0)
    rows, dropped = survey(desk.ctx, wanted, scope(given=Given(vpc=vpc, subnets={"us-east-1b": b}, public=False)))
    assert {candidate.zone for candidate, _ in rows} == {"us-east-1b"}
    assert any("g5.12xlarge us-east-1a spot: none of `subnets` with room is in that zone" in line for line in dropped)
    with pytest.raises(UsageError, match="subnet subnet-0123456789abcdef0 does not exist"):
        given(desk.ctx, config(subnets=[a, "subnet-0123456789abcdef0"]), HOME)


def reserve(region: Emulated, count: int, **more: Any) -> str:
    made = region.ec2.create_capacity_reservation(
        InstanceType="g5.12xlarge",
        InstancePlatform="Linux/UNIX",
        AvailabilityZone="us-east-1c",
        InstanceCount=count,
        **more,
    )
    return str(made["CapacityReservation"]["CapacityReservationId"])


def test_a_capacity_block_says_what_is_rented(desk: Desk, emulated_region: Emulated) -> None:
    ends = datetime.fromtimestamp(NOW + 86_400, UTC)
    held = reserve(emulated_region, 2, EndDate=ends)
    asked = config(capacity_reservation=f"cb-{held[3:]}")
    own = given(desk.ctx, asked, HOME)
    assert own == Given(reservation=held, block=True, ends_unix=int(NOW) + 86_400 - 35 * 60)
    ((one, why),), dropped = survey(desk.ctx, asked, scope(given=own))
    assert (one.title, one.gpus, dropped) == ("g5.12xlarge us-east-1c on_demand", 4, [])
    assert one.usd_per_hour == 5.672 and f"reserved: {held}" in why

    asked_twice = config(nodes=3, capacity_reservation=held)
    with pytest.raises(UsageError, match="has 2 of 2 instances free, and 3 nodes are wanted"):
        given(desk.ctx, asked_twice, HOME)
    with pytest.raises(NexaError, match=r"is of g5.12xlarge with 4 GPUs, 8 are wanted"):
        survey(desk.ctx, config(gpus_per_node=8, capacity_reservation=held), scope(given=own))
    _, subnets = network(emulated_region, "us-east-1a")
    with pytest.raises(UsageError, match=f"{held} is in us-east-1c, where none of `subnets` is"):
        given(desk.ctx, config(capacity_reservation=held, subnets=subnets), HOME)
    assert aws_client.Cloud(HOME).reservation("cr-0123456789abcdef0") is None
