"""Spot requests of instances that RunInstances started, which moto does not record."""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.responses import EC2Response
from moto.ec2.utils import generic_filter, random_spot_request_id

from tests.cloud.faults import Refused

ENDS = {
    "Client.UserInitiatedShutdown": "instance-terminated-by-user",
    "Client.InstanceInitiatedShutdown": "instance-terminated-by-user",
    "Server.SpotInstanceTermination": "instance-terminated-by-price",
}


class SpotRecord(TaggedEC2Resource):
    """A fulfilled request. Attribute names are those that moto's serialiser looks for."""

    def __init__(self, ec2: Any, instance: Any, options: dict[str, Any], list_usd: float) -> None:
        spot = options.get("SpotOptions", {})
        self.ec2_backend = ec2
        self.id = random_spot_request_id()
        self.spot_instance_request_id = self.id
        self.instance_id = instance.id
        self.state = "active"
        self.create_time = utcnow()
        self.spot_price = f"{float(spot.get('MaxPrice') or list_usd):.6f}"
        self.type = spot.get("SpotInstanceType", "one-time")
        self.instance_interruption_behavior = spot.get("InstanceInterruptionBehavior", "terminate")
        self.valid_until = spot.get("ValidUntil")
        self.product_description = "Linux/UNIX"
        self.launched_availability_zone = instance.placement.zone
        self.launch_specification = {
            "ImageId": instance.image_id,
            "InstanceType": instance.instance_type,
            "KeyName": instance.key_name,
            "SubnetId": instance.subnet_id,
            "Placement": {"AvailabilityZone": instance.placement.zone, "GroupName": instance.placement.group_name},
        }
        self.tell("fulfilled", "Your spot request is fulfilled.")

    def tell(self, code: str, message: str) -> None:
        self.status = {"Code": code, "Message": message, "UpdateTime": utcnow()}

    def ends(self, reason: str) -> None:
        """The instance is going: for `reason`, a state reason code."""
        if self.state == "active":
            self.state = "closed"
        self.tell(ENDS.get(reason, "instance-terminated-by-service"), f"The instance was terminated: {reason}.")


def describe_spot_instance_requests(self: EC2Response) -> ActionResult:
    return ActionResult(
        {
            "SpotInstanceRequests": generic_filter(
                self._filters_from_querystring(),
                chosen(self.ec2_backend.spot_instance_requests, self._get_param("SpotInstanceRequestIds", [])),
            )
        }
    )


def cancel_spot_instance_requests(self: EC2Response) -> ActionResult:
    """Cancels the request, never its instance."""
    self.error_on_dryrun()
    found = chosen(self.ec2_backend.spot_instance_requests, self._get_param("SpotInstanceRequestIds", []))
    for record in found:
        if record.state == "active":
            record.state = "cancelled"
            record.tell("request-canceled-and-instance-running", "The request was cancelled; its instance runs on.")
    return ActionResult(
        {"CancelledSpotInstanceRequests": [{"SpotInstanceRequestId": r.id, "State": r.state} for r in found]}
    )


def chosen(requests: dict[str, Any], ids: list[str]) -> list[Any]:
    unknown = [i for i in ids if i not in requests]
    if unknown:
        told = f"The spot instance request ID '{unknown[0]}' does not exist"
        raise Refused("InvalidSpotInstanceRequestID.NotFound", told)
    return [requests[i] for i in ids] if ids else list(requests.values())


ACTIONS = {
    "describe_spot_instance_requests": describe_spot_instance_requests,
    "cancel_spot_instance_requests": cancel_spot_instance_requests,
}
