"""Eventual consistency: new ids that Describe* does not show yet."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET

from tests.cloud.faults import Call, Refused

ID = re.compile(r"\b(?:i|vol|eni|sg|sgr|lt|key|pg|sir|subnet|vpc|igw|rtb|vpce|eipalloc)-[0-9a-f]{8,17}\b")
OWN_ID = {
    "DescribeInstances": "instanceId",
    "DescribeInstanceStatus": "instanceId",
    "DescribeVolumes": "volumeId",
    "DescribeNetworkInterfaces": "networkInterfaceId",
    "DescribeSecurityGroups": "groupId",
    "DescribeSecurityGroupRules": "securityGroupRuleId",
    "DescribeLaunchTemplates": "launchTemplateId",
    "DescribeLaunchTemplateVersions": "launchTemplateId",
    "DescribeKeyPairs": "keyPairId",
    "DescribePlacementGroups": "groupId",
    "DescribeSpotInstanceRequests": "spotInstanceRequestId",
    "DescribeSubnets": "subnetId",
    "DescribeVpcs": "vpcId",
    "DescribeInternetGateways": "internetGatewayId",
    "DescribeRouteTables": "routeTableId",
    "DescribeVpcEndpoints": "vpcEndpointId",
    "DescribeAddresses": "allocationId",
    "DescribeTags": "resourceId",
}
NOT_FOUND = {
    "i": "InvalidInstanceID.NotFound",
    "vol": "InvalidVolume.NotFound",
    "eni": "InvalidNetworkInterfaceID.NotFound",
    "sg": "InvalidGroup.NotFound",
    "sgr": "InvalidSecurityGroupRuleId.NotFound",
    "lt": "InvalidLaunchTemplateId.NotFound",
    "key": "InvalidKeyPair.NotFound",
    "pg": "InvalidPlacementGroup.Unknown",
    "sir": "InvalidSpotInstanceRequestID.NotFound",
    "subnet": "InvalidSubnetID.NotFound",
    "vpc": "InvalidVpcID.NotFound",
    "igw": "InvalidInternetGatewayID.NotFound",
    "rtb": "InvalidRouteTableID.NotFound",
    "vpce": "InvalidVpcEndpointId.NotFound",
    "eipalloc": "InvalidAllocationID.NotFound",
}


class Veil:
    """Which ids were seen before, and until when each new one stays invisible."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._until: dict[str, float] = {}

    def births(self, body: bytes) -> list[str]:
        """Ids that this answer names first. What a call creates, its answer names."""
        new = sorted(set(ID.findall(body.decode(errors="replace"))) - self._seen)
        self._seen.update(new)
        return new

    def hide(self, ids: list[str], seconds: float) -> None:
        until = time.time() + seconds
        self._until.update(dict.fromkeys(ids, until))

    def hidden(self) -> set[str]:
        now = time.time()
        self._until = {k: v for k, v in self._until.items() if v > now}
        return set(self._until)

    def refuse(self, call: Call) -> None:
        """Raises what AWS answers to a Describe* of an id that it does not know yet."""
        hidden = self.hidden()
        for key, value in call.params.items() if hidden else ():
            if value in hidden and not key.startswith("Filter"):
                prefix = value.partition("-")[0]
                raise Refused(NOT_FOUND[prefix], f"The ID '{value}' does not exist")

    def thin(self, call: Call, body: bytes) -> bytes:
        """The answer without the items whose own id is hidden."""
        hidden, tag = self.hidden(), OWN_ID.get(call.name)
        if not hidden or tag is None or not any(i.encode() in body for i in hidden):
            return body
        root = ET.fromstring(body)
        space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
        if space:
            ET.register_namespace("", space[1:-1])
        for parent in list(root.iter()):
            for item in parent.findall(f"{space}item"):
                if item.findtext(f"{space}{tag}") in hidden:
                    parent.remove(item)
        if call.name == "DescribeInstances":
            drop_empty(root, space)
        thinned: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
        return thinned


def drop_empty(root: ET.Element, space: str) -> None:
    """Reservations that have no visible instance left."""
    for found in root.findall(f"{space}reservationSet"):
        for item in found.findall(f"{space}item"):
            if item.find(f"{space}instancesSet/{space}item") is None:
                found.remove(item)
