"""Resources that a user of aws already has and a cluster is put into: a VPC, subnets, a capacity reservation. Judged
from what the cloud says of them, before anything is made. Pure; a fault is a sentence for a person.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

Row = Mapping[str, Any]
WORLD = "0.0.0.0/0"
BLOCK_ENDS_EARLY_S = 35 * 60
"""EC2 ends the instances of a Capacity Block from 30 minutes before its end; the rest is for a last checkpoint."""
SOON = {
    "scheduled": "it begins {begins}",
    "payment-pending": "its payment is pending",
    "assessing": "it is not granted",
}


@dataclass(frozen=True)
class Given:
    """Resources of the user, as they were when the cluster's scope was chosen."""

    vpc: str = ""
    subnets: dict[str, str] = field(default_factory=dict)
    """Subnets by zone."""
    public: bool = True
    """True when nodes have public addresses."""
    reservation: str = ""
    block: bool = False
    """True when the reservation is a Capacity Block."""
    group: str = ""
    """Placement group in which the reservation was made."""
    ends_unix: int | None = None
    """Unix time by which the nodes have to be gone, because the reservation ends."""


def joined(network: Given, reserved: Given) -> Given:
    """Both at once."""
    return replace(reserved, vpc=network.vpc, subnets=network.subnets, public=network.public)


def vpc_faults(vpc: str, cidr: str, vpcs: Sequence[Row], gateways: Sequence[Row], subnets: Sequence[Row]) -> list[str]:
    """Faults that keep subnets of ours from being made in a given VPC. `subnets` are those that it has."""
    if not vpcs:
        return [f"vpc {vpc} does not exist in this region and account"]
    faults: list[str] = []
    if not gateways:
        faults.append(
            f"vpc {vpc} has no internet gateway, and nodes are reached over one (private `subnets` need none)"
        )
    wanted = ipaddress.ip_network(cidr)
    ranges = [row["CidrBlock"] for row in vpcs[0].get("CidrBlockAssociationSet") or vpcs]
    if not any(wanted.subnet_of(_network(text)) for text in ranges):
        faults.append(f"vpc_cidr {cidr} is no part of vpc {vpc} ({', '.join(ranges)})")
    for row in subnets:
        if wanted.overlaps(_network(row["CidrBlock"])):
            faults.append(f"vpc_cidr {cidr} is not free: {row['SubnetId']} has {row['CidrBlock']}")
    return faults


def into_subnets(
    wanted: Sequence[str], subnets: Sequence[Row], tables: Sequence[Row], nodes: int
) -> tuple[Given, list[str], list[str]]:
    """The subnets by zone, what speaks against them, and what is worth a warning. `tables` are the route tables of
    their VPCs. Of several in one zone the first with room for all nodes counts."""
    rows = {row["SubnetId"]: row for row in subnets}
    faults = [f"subnet {name} does not exist in this region and account" for name in wanted if name not in rows]
    found = [rows[name] for name in wanted if name in rows]
    vpcs = sorted({row["VpcId"] for row in found})
    if len(vpcs) > 1:
        faults.append(f"subnets lie in different VPCs ({', '.join(vpcs)}): a security group belongs to one")
    ways = {row["SubnetId"]: way_out(row, tables) for row in found}
    public = [name for name, way in ways.items() if way.startswith("igw-")]
    if 0 < len(public) < len(ways):
        private = ", ".join(name for name in ways if name not in public)
        faults.append(f"{', '.join(public)} are public and {private} private: name subnets of one kind")
    room = {row["AvailabilityZone"]: row["SubnetId"] for row in reversed(found) if _room(row) >= nodes}
    if found and not room:
        least = ", ".join(f"{row['SubnetId']} has {_room(row)}" for row in found)
        faults.append(f"no subnet has {nodes} free addresses: {least}")
    silent = ", ".join(name for name, way in ways.items() if not way)
    warnings = [f"{silent}: no route to {WORLD}: nodes must find their packages within"] if silent else []
    return Given(vpc=vpcs[0] if vpcs else "", subnets=room, public=bool(public)), faults, warnings


def way_out(subnet: Row, tables: Iterable[Row]) -> str:
    """Target of the subnet's default route (igw-…, nat-…, tgw-…); empty when it has none. A subnet without a table of
    its own has its VPC's main one."""
    own, main = _routes(tables, lambda row: row.get("SubnetId") == subnet["SubnetId"]), None
    if own is None:
        here = [table for table in tables if table["VpcId"] == subnet["VpcId"]]
        main = _routes(here, lambda row: bool(row.get("Main")))
    for route in own if own is not None else main or []:
        if route.get("DestinationCidrBlock") == WORLD and route.get("State") != "blackhole":
            ends = (route[key] for key in sorted(route) if key.endswith("Id") and route[key] and "Prefix" not in key)
            return str(next(ends, ""))
    return ""


def _routes(tables: Iterable[Row], belongs: Callable[[Row], bool]) -> list[Row] | None:
    return next((t.get("Routes", []) for t in tables if any(belongs(a) for a in t.get("Associations", ()))), None)


def _room(subnet: Row) -> int:
    return int(subnet.get("AvailableIpAddressCount", 0))


def _network(text: str) -> Any:
    return ipaddress.ip_network(text)


def reserved(name: str, row: Row | None, nodes: int, now: float) -> tuple[Given, list[str]]:
    """A capacity reservation, and what speaks against it."""
    if row is None:
        return Given(), [f"capacity reservation {name} does not exist in this region and account"]
    faults, state = [], row.get("State", "")
    block = row.get("ReservationType") == "capacity-block"
    end: datetime | None = row.get("EndDate") if block else None  # instances outlive any other reservation
    ends = int(end.timestamp() - BLOCK_ENDS_EARLY_S) if end else None
    if state != "active":
        why = SOON.get(state, "it holds nothing").format(begins=row.get("StartDate", "later"))
        faults.append(f"capacity reservation {name} is {state}: {why}")
    elif int(row.get("AvailableInstanceCount", 0)) < nodes:
        free, size = row.get("AvailableInstanceCount", 0), row.get("TotalInstanceCount", 0)
        faults.append(f"capacity reservation {name} has {free} of {size} instances free, and {nodes} nodes are wanted")
    if ends is not None and ends <= now:
        faults.append(f"Capacity Block {name} ends at {end}, and EC2 ends its instances half an hour before that")
    group = re.sub(r".*:placement-group/", "", str(row.get("PlacementGroupArn") or ""))
    return Given(reservation=row["CapacityReservationId"], block=block, group=group, ends_unix=ends), faults
