"""Deep Learning images: the SSM parameters that name the latest, and images of those ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from moto.core.utils import utcnow
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ssm.models import Parameter, ParameterDict

PATH = "/aws/service/deeplearning/"
OWNER = "898082745236"


class Images:
    """Each generation has other ids, as AWS's 'latest' has every week."""

    def __init__(self) -> None:
        self.generation = 1

    def latest(self, account: str, region: str, path: str) -> str:
        """Id of the image that the parameter names now; it exists from then on."""
        seed = f"{region} {path} {self.generation}".encode()
        ami_id = "ami-" + hashlib.sha256(seed).hexdigest()[:17]
        ec2 = ec2_backends[account][region]
        if ami_id not in ec2.amis:
            ec2.amis[ami_id] = Ami(
                ec2,
                ami_id,
                name=f"{path.split('/')[-3]} {self.generation}",
                owner_id=OWNER,
                owner_alias="amazon",
                public=True,
                virtualization_type="hvm",
                architecture="arm64" if "/arm64/" in path else "x86_64",
                hypervisor="xen",
                root_device_type="ebs",
                root_device_name="/dev/sda1",
                region_name=f"{region}a",
            )
        return ami_id


def loads_images(images: Images, before: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    """Replaces the hook with which moto fills public parameters on first use; `before` is moto's own."""

    def check(self: Any, key: str) -> None:
        before(self, key)
        if not str(key or "").startswith(PATH) or not str(key).endswith("/ami-id"):
            return
        value = images.latest(self.account_id, self.region_name, key)
        versions: list[Parameter] = super(ParameterDict, self).__getitem__(key)
        if not versions or versions[-1].value != value:
            versions.append(parameter(self.account_id, key, value, len(versions) + 1))

    return check


Specs = list[dict[str, Any]]


def captures(
    capture: Callable[[str, str], None], plain: Callable[..., Ami]
) -> Callable[[Any, str, str, str, Specs], Ami]:
    """CreateImage with the machine's files behind it, a disk of the instance's size, and tags on the snapshot too."""

    def create(
        self: Any, instance_id: str, name: str, description: str, tag_specifications: list[dict[str, Any]]
    ) -> Ami:
        for_image = [told for told in tag_specifications if told["ResourceType"] != "snapshot"]
        made = plain(self, instance_id, name, description, for_image)
        made.root_device_type, made.root_device_name = "ebs", "/dev/sda1"
        disks = [d.size for d in self.get_instance(instance_id).block_device_mapping.values() if d.size]
        made.ebs_snapshot.volume.size = max(disks, default=made.ebs_snapshot.volume.size)
        for told in tag_specifications:
            if told["ResourceType"] == "snapshot":
                made.ebs_snapshot.add_tags({tag["Key"]: tag["Value"] for tag in told["Tags"]})
        capture(instance_id, made.id)
        return made

    return create


def parameter(account: str, name: str, value: str, version: int) -> Parameter:
    return Parameter(  # type: ignore[abstract]
        account_id=account,
        name=name,
        value=value,
        parameter_type="String",
        description=None,
        allowed_pattern=None,
        keyid=None,
        last_modified_date=utcnow(),
        version=version,
        data_type="text",
    )
