"""What the user already has, judged by the cloud's words: a VPC, subnets, a capacity reservation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nexa_dist.plan.aws.given import Given, into_subnets, joined, reserved, vpc_faults, way_out

VPC, NOW = {"VpcId": "vpc-1", "CidrBlock": "10.0.0.0/16"}, 1_800_000_000.0
GATE = [{"InternetGatewayId": "igw-1"}]
TAKEN = [{"SubnetId": "subnet-1", "CidrBlock": "10.0.65.0/24"}]
SECOND_RANGE = {**VPC, "CidrBlockAssociationSet": [{"CidrBlock": "10.0.0.0/16"}, {"CidrBlock": "10.1.0.0/16"}]}


@pytest.mark.parametrize(
    ("cidr", "vpcs", "gates", "subnets", "said"),
    [
        ("10.0.64.0/20", [VPC], GATE, [], []),
        ("10.1.0.0/20", [SECOND_RANGE], GATE, [], []),
        ("10.0.64.0/20", [], [], [], ["vpc vpc-1 does not exist"]),
        ("10.0.64.0/20", [VPC], [], [], ["has no internet gateway"]),
        ("10.1.0.0/20", [VPC], GATE, [], ["10.1.0.0/20 is no part of vpc vpc-1 (10.0.0.0/16)"]),
        ("10.0.64.0/20", [VPC], GATE, TAKEN, ["is not free: subnet-1 has 10.0.65.0/24"]),
        ("10.1.0.0/20", [VPC], [], [], ["no internet gateway", "no part"]),
    ],
)
def test_a_vpc_is_judged_before_anything_is_made_in_it(
    cidr: str, vpcs: list[Any], gates: list[Any], subnets: list[Any], said: list[str]
) -> None:
    faults = vpc_faults("vpc-1", cidr, vpcs, gates, subnets)
    assert len(faults) == len(said) and all(part in fault for part, fault in zip(said, faults, strict=True))


def subnet(name: str, zone: str, free: int = 250, vpc: str = "vpc-1") -> dict[str, Any]:
    return {"SubnetId": name, "AvailabilityZone": zone, "AvailableIpAddressCount": free, "VpcId": vpc}


def table(way: dict[str, str], *subnets: str, main: bool = False, vpc: str = "vpc-1") -> dict[str, Any]:
    local = {"DestinationCidrBlock": "10.0.0.0/16", "GatewayId": "local"}
    routes = [local, {"DestinationCidrBlock": "0.0.0.0/0", **way}] if way else [local]
    return {
        "VpcId": vpc,
        "Routes": routes,
        "Associations": [{"SubnetId": s} for s in subnets] + [{"Main": True}] * main,
    }


IGW, NAT = {"GatewayId": "igw-1", "State": "active"}, {"NatGatewayId": "nat-1"}


@pytest.mark.parametrize(
    ("tables", "way"),
    [
        ([table(IGW, "s")], "igw-1"),
        ([table(NAT, main=True)], "nat-1"),
        ([table(IGW, main=True), table(NAT, "s")], "nat-1"),  # its own table counts, not the main one
        ([table(IGW, main=True), table({}, "s")], ""),
        ([table(IGW, main=True, vpc="vpc-2")], ""),
        ([table({**NAT, "State": "blackhole"}, "s")], ""),  # a NAT gateway that was deleted
        ([], ""),
    ],
)
def test_where_a_subnets_packets_leave(tables: list[Any], way: str) -> None:
    assert way_out(subnet("s", "a"), tables) == way


def test_subnets_of_ones_own() -> None:
    rows = [subnet("s-a", "a"), subnet("s-b", "b"), subnet("s-a2", "a")]
    private = into_subnets(["s-a2", "s-b", "s-a"], rows, [table(NAT, main=True)], 4)
    assert private == (Given(vpc="vpc-1", subnets={"a": "s-a2", "b": "s-b"}, public=False), [], [])
    found, faults, _ = into_subnets(["s-a", "s-a2"], [subnet("s-a", "a", free=3), rows[2]], [table(IGW, main=True)], 4)
    assert (found.subnets, found.public, faults) == ({"a": "s-a2"}, True, [])


@pytest.mark.parametrize(
    ("rows", "tables", "said"),
    [
        ([subnet("s", "a")], [table(NAT, main=True)], "subnet t does not exist"),
        ([subnet("s", "a"), subnet("t", "b", vpc="vpc-2")], [table(NAT, "s", "t")], "different VPCs (vpc-1, vpc-2)"),
        ([subnet("s", "a"), subnet("t", "b")], [table(IGW, "s"), table(NAT, "t")], "s are public and t private"),
        ([subnet("s", "a", 1), subnet("t", "b", 0)], [table(NAT, "s", "t")], "no subnet has 2 free addresses: s has 1"),
    ],
)
def test_subnets_that_do_not_do(rows: list[Any], tables: list[Any], said: str) -> None:
    _, faults, _ = into_subnets(["s", "t"], rows, tables, 2)
    assert len(faults) == 1 and said in faults[0]


def test_a_subnet_without_a_way_out_is_no_fault_and_said() -> None:
    _, faults, warnings = into_subnets(["s"], [subnet("s", "a")], [table({}, main=True)], 1)
    assert faults == [] and "s: no route to 0.0.0.0/0" in warnings[0]


def held(**keys: Any) -> dict[str, Any]:
    told = {"CapacityReservationId": "cr-01234567", "State": "active", "AvailableInstanceCount": 2}
    return {**told, "TotalInstanceCount": 2, "ReservationType": "default", **keys}


def at(hours: float) -> datetime:
    return datetime.fromtimestamp(NOW + hours * 3600, UTC)


def test_a_reservation_and_a_capacity_block() -> None:
    group = "arn:aws:ec2:us-east-1:1:placement-group/near each other"
    plain, faults = reserved("cr-01234567", held(PlacementGroupArn=group, EndDate=at(1)), 2, NOW)
    assert (plain, faults) == (Given(reservation="cr-01234567", group="near each other"), [])
    block, faults = reserved("cb-1", held(ReservationType="capacity-block", EndDate=at(24)), 2, NOW)
    assert block.block and block.ends_unix == int(NOW) + 24 * 3600 - 35 * 60 and faults == []
    network = Given(vpc="vpc-1", subnets={"a": "s"}, public=False)
    assert joined(network, block) == Given("vpc-1", {"a": "s"}, False, "cr-01234567", True, "", block.ends_unix)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (None, "cr-1 does not exist"),
        (held(State="scheduled", StartDate=at(9)), "cr-1 is scheduled: it begins 2027-01-15"),
        (held(State="expired"), "cr-1 is expired: it holds nothing"),
        (held(AvailableInstanceCount=1), "has 1 of 2 instances free, and 2 nodes are wanted"),
        (held(ReservationType="capacity-block", EndDate=at(0.5)), "Capacity Block cr-1 ends at 2027-01-15"),
    ],
)
def test_a_reservation_that_does_not_do(row: dict[str, Any] | None, said: str) -> None:
    _, faults = reserved("cr-1", row, 2, NOW)
    assert len(faults) == 1 and said in faults[0]
