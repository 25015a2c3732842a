"""Machine images of our own: made of a node, found by their tags, deleted with the snapshots that cost money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nexa_dist.run.aws.client import client, rows, spoken, tag_list, tags_of
from nexa_dist.run.aws.tagged import OWNER

ENV, BASE = "nexa:env", "nexa:base"
SNAPSHOT_USD_PER_GB_MONTH = 0.05
"""AWS's list price of standard snapshots in us-east-1."""


@dataclass(frozen=True)
class Image:
    """`env` is the hash of the training environment in it, `base` the image that it was made from."""

    id: str
    state: str
    made_unix: float
    env: str
    base: str
    gb: int
    """Snapshot size in GB; a node's volume_gb must be at least this."""
    snapshots: tuple[str, ...]

    @property
    def usd_per_month(self) -> float:
        """USD a month at most: only what is written of the disks is billed."""
        return round(self.gb * SNAPSHOT_USD_PER_GB_MONTH, 2)


def found(region: str, owner: str) -> list[Image]:
    """The images of one owner, newest first."""
    wanted = [{"Name": f"tag:{OWNER}", "Values": [owner]}, {"Name": "tag-key", "Values": [ENV]}]
    told = rows("listing images", region, "describe_images", "Images[]", Owners=["self"], Filters=wanted)
    return sorted((_image(row) for row in told), key=lambda image: -image.made_unix)


def _image(row: dict[str, Any]) -> Image:
    tags = tags_of(row)
    disks = [disk["Ebs"] for disk in row.get("BlockDeviceMappings", ()) if "Ebs" in disk]
    return Image(
        id=row["ImageId"],
        state=row["State"],
        made_unix=datetime.fromisoformat(row["CreationDate"]).timestamp(),
        env=tags.get(ENV, ""),
        base=tags.get(BASE, ""),
        gb=sum(int(disk.get("VolumeSize") or 0) for disk in disks),
        snapshots=tuple(disk["SnapshotId"] for disk in disks if disk.get("SnapshotId")),
    )


def make(region: str, instance_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Begins an image of a node as it is, without a reboot; answers its id."""
    told: Any = [{"ResourceType": kind, "Tags": tag_list(dict(tags))} for kind in ("image", "snapshot")]
    with spoken(f"making an image of {instance_id}"):
        made = client("ec2", region).create_image(
            InstanceId=instance_id, Name=name, NoReboot=True, TagSpecifications=told
        )
    return str(made["ImageId"])


def delete(region: str, image: Image) -> None:
    """The image, then its snapshots: the cloud keeps those otherwise, and bills them."""
    ec2 = client("ec2", region)
    with spoken(f"deleting {image.id}"):
        ec2.deregister_image(ImageId=image.id)
        for snapshot in image.snapshots:
            ec2.delete_snapshot(SnapshotId=snapshot)
