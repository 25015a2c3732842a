"""RunInstances as AWS does it: launch templates in full, capacity, spot records, tags on all that is made."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models.instances import Instance
from moto.ec2.responses import EC2Response
from moto.ec2.utils import convert_tag_spec

from tests.cloud.faults import FaultBook, Refused
from tests.cloud.moto_groups import group_named
from tests.cloud.moto_life import Life
from tests.cloud.moto_prices import Prices
from tests.cloud.moto_reservations import target
from tests.cloud.moto_spot import SpotRecord
from tests.cloud.types import HostSpec

Params = dict[str, Any]
GP3 = {"iops": 3000, "throughput": 125}


@dataclass
class Launch:
    """The RunInstances of one emulated region. `plain` is moto's own."""

    life: Life
    faults: FaultBook
    prices: Prices
    plain: Callable[[EC2Response], ActionResult]

    def run(self, response: EC2Response) -> ActionResult:
        ec2, asked = response.ec2_backend, response.params
        merged = not self.faults.strike("overwritten")
        params = with_template(ec2, asked, merged)
        params["MinCount"] = params.get("MaxCount", params.get("MinCount", 1))
        response.params = params
        zone, group = check(ec2, params)
        reservation = target(ec2, params, group)
        market = "spot" if is_spot(params) else "on_demand"
        type_ = params.get("InstanceType", "m1.small")
        if not params.get("DryRun"):
            self._afford(type_, zone, market, params)
            self.faults.refuse_launch(type=type_, zone=zone, market=market, count=int(params["MinCount"]))
        response.params = {**params, **by_number(params)}
        answer = self.plain(response)
        for instance in answer.result.instances:  # type: ignore[attr-defined]
            self._complete(ec2, instance, params, group)
            if reservation:
                held = {"CapacityReservationTarget": {"CapacityReservationId": reservation}}
                vars(instance).update(capacity_reservation_id=reservation, capacity_reservation_specification=held)
                if params.get("InstanceMarketOptions"):
                    instance.lifecycle = "capacity-block"
        return answer

    def _afford(self, type_: str, zone: str, market: str, params: Params) -> None:
        most = params.get("InstanceMarketOptions", {}).get("SpotOptions", {}).get("MaxPrice")
        if market == "spot" and most:
            now = self.prices.history(type_, zone, market)[-1][1]
            if float(most) < now:
                told = f"Your Spot request price of {most} is lower than the minimum required Spot price of {now}."
                raise Refused("SpotMaxPriceTooLow", told)

    def _complete(self, ec2: Any, instance: Instance, params: Params, group: str) -> None:
        tags = convert_tag_spec(params.get("TagSpecifications", []))
        instance.placement.group_name = group
        instance.disable_api_termination = bool(params.get("DisableApiTermination", False))
        own = params.get("NetworkInterfaces", [])
        for number, nic in instance.nics.items():
            asked = own[number] if own else {}
            nic.device_index = int(asked.get("DeviceIndex", 0))
            vars(nic)["network_card_index"] = int(asked.get("NetworkCardIndex", 0))
            if not asked.get("NetworkInterfaceId"):
                nic.delete_on_termination = asked.get("DeleteOnTermination", True)
                nic.interface_type = asked.get("InterfaceType", "interface")
                nic.add_tags(tags.get("network-interface", {}))
        if not instance.security_groups:
            instance.security_groups = list(instance.nics[0].group_set)
        shape_volumes(ec2, instance, params)
        spot = None
        if is_spot(params):
            list_usd = self.prices.history(instance.instance_type, instance.placement.zone or "", "on_demand")[-1][1]
            spot = SpotRecord(ec2, instance, params.get("InstanceMarketOptions", {}), list_usd)
            spot.add_tags(tags.get("spot-instances-request", {}))
            ec2.spot_instance_requests[spot.id] = spot
            vars(instance)["spot_instance_request_id"] = spot.id
        spec = host_spec(ec2, instance, spot is not None, self.faults)
        self.life.begin(instance, spec, spot)


def is_spot(params: Params) -> bool:
    return bool(params.get("InstanceMarketOptions", {}).get("MarketType") == "spot")


def by_number(params: Params) -> Params:
    """The interfaces under distinct device indexes: moto does not know that each network card counts its own."""
    own = params.get("NetworkInterfaces", [])
    own.sort(key=lambda n: (int(n.get("NetworkCardIndex", 0)), int(n.get("DeviceIndex", 0))))
    return {"NetworkInterfaces": [{**nic, "DeviceIndex": number} for number, nic in enumerate(own)]} if own else {}


def with_template(ec2: Any, asked: Params, merged: bool = True) -> Params:
    """The request laid over its launch template; tags of both, the request's first. EC2's reference says that what a
    request names overwrites the template, and nothing of tags: with `merged` false its tags take the place of all."""
    if not asked.get("LaunchTemplate"):
        return dict(asked)
    data: Params = copy.deepcopy(ec2._get_template_from_args(asked["LaunchTemplate"]).data)
    if data.get("UserData") is not None:
        data["UserData"] = str(data["UserData"])
    tags = convert_tag_spec(data.get("TagSpecifications", []))
    tags = tags if merged or not asked.get("TagSpecifications") else {}
    for kind, own in convert_tag_spec(asked.get("TagSpecifications", [])).items():
        tags[kind] = {**tags.get(kind, {}), **own}
    made = {**data, **asked}
    if tags:
        made["TagSpecifications"] = [
            {"ResourceType": kind, "Tags": [{"Key": k, "Value": v} for k, v in own.items()]}
            for kind, own in tags.items()
        ]
    if "NetworkInterfaces" in asked:
        made.update({k: asked.get(k) for k in ("SecurityGroupIds", "SecurityGroups", "SubnetId")})
    for mapping in made.get("BlockDeviceMappings", []):
        ebs = mapping.get("Ebs")
        if ebs is not None and not ebs.get("VolumeSize") and not ebs.get("SnapshotId"):
            ebs["VolumeSize"] = 8
    return {k: v for k, v in made.items() if v is not None}


def check(ec2: Any, params: Params) -> tuple[str, str]:
    """(zone, placement group name or empty) of a launch that AWS would not refuse outright.

    A launch that names no subnet gets the zone's default one, where moto takes addresses from nowhere.
    """
    nics = params.get("NetworkInterfaces", [])
    if nics and (params.get("SecurityGroupIds") or params.get("SecurityGroups")):
        told = "Network interfaces and an instance-level security groups may not be specified on the same request"
        raise Refused("InvalidParameterCombination", told)
    if len(nics) > 1 and any(n.get("AssociatePublicIpAddress") for n in nics):
        told = "The associatePublicIPAddress parameter cannot be specified for several network interfaces."
        raise Refused("InvalidParameterCombination", told)
    place = params.get("Placement", {})
    group = ""
    if place.get("GroupName") or place.get("GroupId"):
        group = group_named(ec2, place.get("GroupName"), place.get("GroupId")).group_name
    subnet = params.get("SubnetId") or next((n["SubnetId"] for n in nics if n.get("SubnetId")), None)
    if subnet:
        return str(ec2.get_subnet(subnet).availability_zone), group
    zone = place.get("AvailabilityZone") or f"{ec2.region_name}a"
    if not any(n.get("NetworkInterfaceId") for n in nics):
        (nics[0] if nics else params)["SubnetId"] = default_subnet(ec2, zone)
    return zone, group


def default_subnet(ec2: Any, zone: str) -> str:
    subnets = ec2.get_default_subnets()
    if zone not in subnets:
        raise Refused("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
    return str(subnets[zone].id)


def shape_volumes(ec2: Any, instance: Instance, params: Params) -> None:
    """What moto leaves out of the volumes that it makes for an instance."""
    asked = {m.get("DeviceName"): m.get("Ebs", {}) for m in params.get("BlockDeviceMappings", [])}
    for device, attached in instance.get_block_device_mapping:
        ebs, volume = asked.get(device, {}), ec2.get_volume(attached.volume_id)
        if "DeleteOnTermination" not in ebs:
            attached.delete_on_termination = True
        if volume.volume_type == "gp3":
            volume.iops = int(ebs.get("Iops") or GP3["iops"])
            volume.throughput = int(ebs.get("Throughput") or GP3["throughput"])


def host_spec(ec2: Any, instance: Instance, spot: bool, faults: FaultBook) -> HostSpec:
    pair = ec2.key_pairs.get(instance.key_name)
    zone = instance.placement.zone or ""
    return HostSpec(
        instance_id=instance.id,
        region=ec2.region_name,
        zone=zone,
        vpc_id=instance.vpc_id or "",
        type=instance.instance_type,
        private_ip=instance.private_ip or "",
        public_ip=instance.public_ip,
        subnet_cidr=ec2.get_subnet(instance.subnet_id).cidr_block,
        user_data=base64.b64decode(str(instance.user_data or "")),
        public_key=pair.public_key.strip() if pair else "",
        spot=spot,
        tags={t["key"]: t["value"] for t in instance.get_tags()},
        image=instance.image_id or "",
        boots=faults.boots(type=instance.instance_type, zone=zone),
    )
