"""Placement groups, which moto lacks."""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.responses import EC2Response
from moto.ec2.utils import generic_filter, random_id

from tests.cloud.faults import Refused

PREFIX = {"placement-group": "pg"}


class PlacementGroup(TaggedEC2Resource):
    def __init__(self, ec2: Any, name: str, strategy: str, partitions: int | None, tags: dict[str, str]) -> None:
        self.ec2_backend = ec2
        self.id = random_id("pg")
        self.group_id = self.id
        self.group_name = name
        self.strategy = strategy
        self.partition_count = partitions
        self.state = "available"
        account, region = ec2.account_id, ec2.region_name
        self.group_arn = f"arn:aws:ec2:{region}:{account}:placement-group/{name}"
        self.add_tags(tags)


def groups_of(ec2: Any) -> dict[str, PlacementGroup]:
    """Placement groups by name of one account and region."""
    found: dict[str, PlacementGroup] = vars(ec2).setdefault("placement_groups", {})
    return found


def group_named(ec2: Any, name: str | None, group_id: str | None = None) -> PlacementGroup:
    for group in groups_of(ec2).values():
        if group.group_name == name or (group_id and group.id == group_id):
            return group
    raise Refused("InvalidPlacementGroup.Unknown", f"The Placement Group '{name or group_id}' is unknown.")


def create_placement_group(self: EC2Response) -> ActionResult:
    name = self._get_param("GroupName")
    tags = self._parse_tag_specification("placement-group").get("placement-group", {})
    self.error_on_dryrun()
    groups = groups_of(self.ec2_backend)
    if name in groups:
        raise Refused("InvalidPlacementGroup.Duplicate", f"The placement group '{name}' already exists.")
    strategy = self._get_param("Strategy", "cluster")
    groups[name] = PlacementGroup(self.ec2_backend, name, strategy, self._get_int_param("PartitionCount"), tags)
    return ActionResult({"PlacementGroup": groups[name]})


def describe_placement_groups(self: EC2Response) -> ActionResult:
    names, ids = self._get_param("GroupNames", []), self._get_param("GroupIds", [])
    found = [group_named(self.ec2_backend, n) for n in names] + [group_named(self.ec2_backend, None, i) for i in ids]
    if not names and not ids:
        found = list(groups_of(self.ec2_backend).values())
    return ActionResult({"PlacementGroups": generic_filter(self._filters_from_querystring(), found)})


def delete_placement_group(self: EC2Response) -> EmptyResult:
    group = group_named(self.ec2_backend, self._get_param("GroupName"))
    self.error_on_dryrun()
    for instance in self.ec2_backend.all_instances():
        if instance.placement.group_name == group.group_name and instance.state != "terminated":
            told = f"The placement group '{group.group_name}' is in use and may not be deleted."
            raise Refused("InvalidPlacementGroup.InUse", told)
    del groups_of(self.ec2_backend)[group.group_name]
    self.ec2_backend.tags.pop(group.id, None)
    return EmptyResult()


ACTIONS = {
    "create_placement_group": create_placement_group,
    "describe_placement_groups": describe_placement_groups,
    "delete_placement_group": delete_placement_group,
}
