"""Limits of AWS for this account and what is used of them: quotas, types, images, networks, addresses. Nothing here
acts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nexa_dist.run.aws.client import Refused, client, rows, spoken, tags_of
from nexa_dist.run.aws.tagged import CLUSTER, OWNER

COUNTED = ("pending", "running", "shutting-down", "stopping")
"""States in which an instance is counted."""


@dataclass(frozen=True)
class Limits:
    """Limits of an account in one region."""

    region: str

    def _rows(self, operation: str, path: str, **asked: Any) -> list[dict[str, Any]]:
        return rows(operation.replace("_", " "), self.region, operation, path, **asked)

    def value(self, service: str, code: str) -> float:
        """A quota as it is now."""
        with spoken(f"asking for quota {code}"):
            told = client("service-quotas", self.region).get_service_quota(ServiceCode=service, QuotaCode=code)
            return float(told["Quota"]["Value"])

    def types(self, named: Sequence[str]) -> list[dict[str, Any]]:
        """AWS's description of each instance type."""
        wanted = [{"Name": "instance-type", "Values": list(named)}]
        return self._rows("describe_instance_types", "InstanceTypes[]", Filters=wanted)

    def vcpus(self, owner: str, cluster: str) -> dict[tuple[str, str], int]:
        """Used by (type, market), without what the cluster itself has."""
        used: Counter[tuple[str, str]] = Counter()
        wanted = [{"Name": "instance-state-name", "Values": list(COUNTED)}]
        for row in self._rows("describe_instances", "Reservations[].Instances[]", Filters=wanted):
            if not _of(row, owner, cluster) and (cpu := row.get("CpuOptions")):
                market = "spot" if row.get("InstanceLifecycle") == "spot" else "on_demand"
                used[row["InstanceType"], market] += cpu["CoreCount"] * cpu["ThreadsPerCore"]
        return dict(used)

    def addresses(self, owner: str, cluster: str) -> int:
        """Elastic IPs that there are, without the cluster's own."""
        return sum(not _of(row, owner, cluster) for row in self._rows("describe_addresses", "Addresses[]"))

    def vpcs(self, owner: str, cluster: str) -> tuple[int, bool]:
        """Count of the VPCs that there are, and whether the cluster has its own already."""
        found = self._rows("describe_vpcs", "Vpcs[]")
        return len(found), any(_of(row, owner, cluster) for row in found)

    def image_fault(self, image: str, volume_gb: int) -> str:
        """Why no node of ours can boot from it; empty when it can."""
        try:
            found = self._rows("describe_images", "Images[]", ImageIds=[image])
        except Refused as error:
            if not error.reason.startswith("InvalidAMIID"):
                raise
            return f"cannot be used: {error.told}"
        if not found:
            return "is not in this region, or not shared with this account"
        row, root = found[0], found[0].get("RootDeviceName")
        disks = [disk.get("Ebs", {}) for disk in row.get("BlockDeviceMappings", ()) if disk.get("DeviceName") == root]
        gb = max((int(disk.get("VolumeSize") or 0) for disk in disks), default=0)
        if row.get("State", "available") != "available":
            return f"is {row['State']}, not available"
        if row.get("Architecture", "x86_64") != "x86_64":
            return f"is for {row['Architecture']}, and the nodes are x86_64"
        if row.get("RootDeviceType", "ebs") != "ebs":
            return "has no root disk of EBS"
        return f"has a root disk of {gb} GB, and volume_gb is {volume_gb}" if gb > volume_gb else ""


def _of(row: dict[str, Any], owner: str, cluster: str) -> bool:
    tags = tags_of(row)
    return (tags.get(OWNER), tags.get(CLUSTER)) == (owner, cluster)
