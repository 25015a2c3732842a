"""Capacity reservations and Capacity Blocks, which moto lacks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.responses import EC2Response
from moto.ec2.utils import random_id

from tests.cloud.faults import Refused


@dataclass
class Reservation:
    """A Capacity Block where it has an end, which every block has; tests give no other reservation one."""

    capacity_reservation_id: str
    instance_type: str
    availability_zone: str
    total_instance_count: int
    start_date: datetime
    end_date: datetime | None
    state: str = "active"

    @property
    def row(self) -> dict[str, Any]:
        kind = "capacity-block" if self.end_date else "default"
        block = {"CapacityBlockId": f"cb-{self.capacity_reservation_id[3:]}"} if self.end_date else {}
        return {
            "CapacityReservationId": self.capacity_reservation_id,
            "InstanceType": self.instance_type,
            "AvailabilityZone": self.availability_zone,
            "TotalInstanceCount": self.total_instance_count,
            "StartDate": self.start_date,
            "EndDate": self.end_date,
            "State": self.state,
            "ReservationType": kind,
            **block,
        }


def held(ec2: Any) -> dict[str, Reservation]:
    found: dict[str, Reservation] = vars(ec2).setdefault("capacity_reservations", {})
    return found


def free(ec2: Any, one: Reservation) -> int:
    used = [i for i in ec2.all_instances() if vars(i).get("capacity_reservation_id") == one.capacity_reservation_id]
    return one.total_instance_count - sum(i.state not in ("shutting-down", "terminated") for i in used)


def create_capacity_reservation(self: EC2Response) -> ActionResult:
    end = self._get_param("EndDate")
    made = Reservation(
        random_id("cr"),
        self._get_param("InstanceType"),
        self._get_param("AvailabilityZone"),
        int(self._get_param("InstanceCount")),
        datetime.now(UTC),
        end if isinstance(end, datetime) or not end else datetime.fromisoformat(str(end)),
    )
    held(self.ec2_backend)[made.capacity_reservation_id] = made
    return ActionResult({"CapacityReservation": made.row})


def describe_capacity_reservations(self: EC2Response) -> ActionResult:
    ec2 = self.ec2_backend
    rows = [{**one.row, "AvailableInstanceCount": free(ec2, one)} for one in held(ec2).values()]
    return ActionResult({"CapacityReservations": rows})


def target(ec2: Any, params: dict[str, Any], group: str) -> str:
    """The reservation that a launch uses; empty for none. Raises Refused as EC2 does where they do not go together."""
    asked = params.get("CapacityReservationSpecification", {}).get("CapacityReservationTarget", {})
    ident = str(asked.get("CapacityReservationId") or "")
    market = params.get("InstanceMarketOptions", {}).get("MarketType")
    if not ident:
        if market == "capacity-block":
            raise Refused("InvalidParameterCombination", "A Capacity Block is launched into by its reservation.")
        return ""
    if ident not in held(ec2):
        raise Refused("InvalidCapacityReservationId.NotFound", f"The capacity reservation '{ident}' does not exist.")
    one = held(ec2)[ident]
    if group or (market == "capacity-block") != bool(one.end_date):
        told = "The market type or the placement group does not match the capacity reservation."
        raise Refused("InvalidParameterCombination", told)
    if free(ec2, one) < int(params["MinCount"]):
        told = "The requested reservation does not have sufficient compatible and available capacity."
        raise Refused("ReservationCapacityExceeded", told)
    return ident


ACTIONS = {
    "create_capacity_reservation": create_capacity_reservation,
    "describe_capacity_reservations": describe_capacity_reservations,
}
