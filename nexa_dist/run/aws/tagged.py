"""Everything in the cloud that carries the exact tags of one owner (and one cluster): listed by tag alone.

Terraform's state is a cache. What a killed apply left, what a lost state forgot and what another machine made is found
here, by the cloud's own answers. Nothing is ever found by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexa_dist.errors import NexaError
from nexa_dist.run.aws.client import answered, client, rows, spoken, tag_list, tags_of

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client

OWNER, CLUSTER, WORKSPACE, EXPIRES = "nexa:owner", "nexa:cluster", "nexa:workspace", "nexa:expires"
NODE = "nexa:node"

Deleter = Callable[["EC2Client", str, dict[str, Any]], object]


@dataclass(frozen=True)
class Kind:
    """One kind of thing that can be left behind: how to list it, and how to end it."""

    name: str
    operation: str
    path: str
    id: str
    end: Deleter
    state: str = "State"
    """JMESPath of the state that the cloud tells; what has none is `present`."""
    gone: frozenset[str] = frozenset()
    """States in which it costs nothing and ends by itself."""


def _end_group(ec2: EC2Client, group: str, row: dict[str, Any]) -> None:
    # A rule that names its own group holds nothing, but two groups that name each other hold both.
    if row.get("IpPermissions"):
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=row["IpPermissions"])
    ec2.delete_security_group(GroupId=group)


def _end_gateway(ec2: EC2Client, gateway: str, row: dict[str, Any]) -> None:
    for attachment in row.get("Attachments", ()):
        ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=attachment["VpcId"])
    ec2.delete_internet_gateway(InternetGatewayId=gateway)


def _end_routes(ec2: EC2Client, table: str, row: dict[str, Any]) -> None:
    for association in row.get("Associations", ()):
        if not association.get("Main"):
            ec2.disassociate_route_table(AssociationId=association["RouteTableAssociationId"])
    ec2.delete_route_table(RouteTableId=table)


KINDS = (
    Kind("instance", "describe_instances", "Reservations[].Instances[]", "InstanceId",
         lambda ec2, i, _: ec2.terminate_instances(InstanceIds=[i]), "State.Name", frozenset({"terminated"})),
    Kind("spot request", "describe_spot_instance_requests", "SpotInstanceRequests[]", "SpotInstanceRequestId",
         lambda ec2, i, _: ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[i]),
         gone=frozenset({"cancelled", "closed", "completed", "failed"})),
    Kind("address", "describe_addresses", "Addresses[]", "AllocationId",
         lambda ec2, i, _: ec2.release_address(AllocationId=i)),
    Kind("network interface", "describe_network_interfaces", "NetworkInterfaces[]", "NetworkInterfaceId",
         lambda ec2, i, _: ec2.delete_network_interface(NetworkInterfaceId=i), "Status"),
    Kind("volume", "describe_volumes", "Volumes[]", "VolumeId",
         lambda ec2, i, _: ec2.delete_volume(VolumeId=i)),
    Kind("launch template", "describe_launch_templates", "LaunchTemplates[]", "LaunchTemplateId",
         lambda ec2, i, _: ec2.delete_launch_template(LaunchTemplateId=i)),
    Kind("placement group", "describe_placement_groups", "PlacementGroups[]", "GroupName",
         lambda ec2, i, _: ec2.delete_placement_group(GroupName=i), gone=frozenset({"deleted"})),
    Kind("security group", "describe_security_groups", "SecurityGroups[]", "GroupId", _end_group),
    Kind("vpc endpoint", "describe_vpc_endpoints", "VpcEndpoints[]", "VpcEndpointId",
         lambda ec2, i, _: ec2.delete_vpc_endpoints(VpcEndpointIds=[i]), gone=frozenset({"deleted"})),
    Kind("subnet", "describe_subnets", "Subnets[]", "SubnetId",
         lambda ec2, i, _: ec2.delete_subnet(SubnetId=i)),
    Kind("route table", "describe_route_tables", "RouteTables[]", "RouteTableId", _end_routes),
    Kind("internet gateway", "describe_internet_gateways", "InternetGateways[]", "InternetGatewayId", _end_gateway),
    Kind("vpc", "describe_vpcs", "Vpcs[]", "VpcId",
         lambda ec2, i, _: ec2.delete_vpc(VpcId=i)),
    Kind("key pair", "describe_key_pairs", "KeyPairs[]", "KeyPairId",  # the claim on the cluster: the last to go
         lambda ec2, _, row: ec2.delete_key_pair(KeyName=row["KeyName"])),
)  # fmt: skip
"""Everything that the stack makes, in the order in which it can be ended."""


LAUNCHED = {"network interface": "network-interface-id", "spot request": "spot-instance-request-id"}
"""Kinds that come with an instance, and the filter that has its id."""
IAM_PATH = "/nexa/"
EC2 = tuple(kind.name for kind in KINDS)
IAM = ("instance profile", "role")
"""Made for a bucket alone."""
ALL = EC2 + IAM


@dataclass(frozen=True)
class TaggedResource:
    """One resource with our tags, as the cloud described it."""

    kind: str
    id: str
    region: str
    state: str
    alive: bool
    tags: dict[str, str] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.id

    @property
    def cluster(self) -> str:
        return self.tags.get(CLUSTER, "")

    @property
    def since_unix(self) -> float | None:
        """Unix time at which an instance was launched."""
        launched = self.row.get("LaunchTime")
        return launched.timestamp() if launched else None

    @property
    def offer(self) -> str:
        """Instance type, zone and market of an instance."""
        if self.kind != "instance":
            return ""
        market = "spot" if self.row.get("InstanceLifecycle") == "spot" else "on_demand"
        return f"{self.row['InstanceType']} {self.row['Placement']['AvailabilityZone']} {market}"

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "id": self.id, "region": self.region, "state": self.state}


@dataclass(frozen=True)
class Unseen:
    """A kind of which nobody knows what there is in a region, and why."""

    kind: str
    region: str
    error: NexaError

    def __str__(self) -> str:
        return f"{self.kind}s in {self.region} could not be listed: {self.error}"


def look(
    region: str, owner: str, cluster: str | None = None, kinds: Sequence[str] = ALL
) -> tuple[list[TaggedResource], list[Unseen]]:
    """Look for all of the `kinds` that carries `owner` and `cluster` (any cluster if None) in its tags, dead instances
    included; and the kinds that could not be listed. Raises NexaError when that is every kind."""

    def ask(name: str) -> list[TaggedResource] | Unseen:
        try:
            if name in IAM:
                return _profiles(name, region, owner, cluster)
            return _listed(KINDS[EC2.index(name)], region, owner, cluster)[0]
        except NexaError as error:  # one that is denied must not hide the others
            return Unseen(name, region, error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, kinds))
    unseen = [answer for answer in answers if isinstance(answer, Unseen)]
    if unseen and len(unseen) == len(answers):
        raise unseen[0].error
    found = [thing for answer in answers if not isinstance(answer, Unseen) for thing in answer]
    for name in sorted(LAUNCHED.keys() & set(kinds) - {kind.kind for kind in unseen}):
        try:
            found += _launched(KINDS[EC2.index(name)], region, found)
        except NexaError as error:
            unseen.append(Unseen(name, region, error))
    return found, unseen


def find(region: str, owner: str, cluster: str | None = None, kinds: Sequence[str] = ALL) -> list[TaggedResource]:
    """Look where nothing may stay unseen: as `look`, but raises NexaError that says all that could not be listed."""
    found, unseen = look(region, owner, cluster, kinds)
    if unseen:
        first = unseen[0].error
        raise NexaError("; ".join(map(str, unseen)), hint=first.hint, code=first.code)
    return found


def _launched(kind: Kind, region: str, found: Sequence[TaggedResource]) -> list[TaggedResource]:
    """Resources of our instances that have no tags, with the tags of the instance.

    A launch template says their tags, and EC2's reference says of a launch that what it names itself overwrites what
    the template says. What outlives an instance is not its own: somebody attached it.
    """
    known = {thing.id for thing in found}
    holders: dict[str, TaggedResource] = {}
    for machine in (thing for thing in found if thing.kind == "instance"):
        cards = machine.row.get("NetworkInterfaces", ())
        own = [card["NetworkInterfaceId"] for card in cards if card["Attachment"].get("DeleteOnTermination")]
        own = own if kind.name == "network interface" else [machine.row.get("SpotInstanceRequestId")]
        holders |= {i: machine for i in own if i and i not in known}
    if not holders:
        return []
    wanted = [{"Name": LAUNCHED[kind.name], "Values": sorted(holders)}]
    listed = rows(f"listing {kind.name}s in {region}", region, kind.operation, kind.path, Filters=wanted)
    return [_thing(kind, region, row, holders[row[kind.id]].tags) for row in listed]


def tag_launched(found: Iterable[TaggedResource]) -> None:
    """Gives them these tags, so that they are found when the instance is forgotten."""
    for thing in found:
        if thing.kind in LAUNCHED and thing.alive and tags_of(thing.row).get(OWNER) != thing.tags[OWNER]:
            own = {key: value for key, value in thing.tags.items() if not key.startswith("aws:")}
            with spoken(f"tagging {thing.kind} {thing.id}"):
                client("ec2", thing.region).create_tags(Resources=[thing.id], Tags=tag_list(own))


def _thing(kind: Kind, region: str, row: dict[str, Any], tags: dict[str, str]) -> TaggedResource:
    import jmespath

    state = str(jmespath.search(kind.state, row) or "present")
    return TaggedResource(kind.name, row[kind.id], region, state, state not in kind.gone, tags, row)


def machines(region: str, owner: str, cluster: str) -> tuple[list[TaggedResource], float | None]:
    """The instances of a cluster, dead ones included, and what time it was for the cloud when it told of them."""
    return _listed(KINDS[0], region, owner, cluster)


def _listed(kind: Kind, region: str, owner: str, cluster: str | None) -> tuple[list[TaggedResource], float | None]:
    wanted = [{"Name": f"tag:{OWNER}", "Values": [owner]}]
    wanted.append(
        {"Name": f"tag:{CLUSTER}", "Values": [cluster]} if cluster else {"Name": "tag-key", "Values": [CLUSTER]}
    )
    found, at = answered(f"listing {kind.name}s in {region}", region, kind.operation, kind.path, Filters=wanted)
    things = []
    for row in found:
        if row.get("GroupName") == "default" and kind.name == "security group":
            continue  # a VPC's own: it cannot be deleted, and goes with the VPC
        thing = _thing(kind, region, row, tags_of(row))
        # Filters are the cloud's work; the exact pair is checked here once more, since what follows may delete.
        if _exact(thing, owner, cluster):
            things.append(thing)
    return things, at


def _profiles(kind: str, region: str, owner: str, cluster: str | None) -> list[TaggedResource]:
    """Instance profiles or roles below our path. They cost nothing, but are not ours to leave behind."""
    iam = client("iam", region)
    prefix = f"{IAM_PATH}{cluster}/" if cluster else IAM_PATH
    below: dict[str, Any] = {"service": "iam", "PathPrefix": prefix}
    with spoken(what := f"listing {kind}s"):
        if kind == "role":
            found = [(row["RoleName"], row) for row in rows(what, region, "list_roles", "Roles[]", **below)]
            tagged = [iam.list_role_tags(RoleName=name) for name, _ in found]
        else:
            profiles = rows(what, region, "list_instance_profiles", "InstanceProfiles[]", **below)
            found = [(row["InstanceProfileName"], row) for row in profiles]
            tagged = [iam.list_instance_profile_tags(InstanceProfileName=name) for name, _ in found]
    things = [
        TaggedResource(kind, name, region, "present", True, tags_of(tags), row)
        for (name, row), tags in zip(found, tagged, strict=True)
    ]
    return [thing for thing in things if _exact(thing, owner, cluster)]


def _exact(thing: TaggedResource, owner: str, cluster: str | None) -> bool:
    """Both tags, and no other value in either. Any cluster is still one: half of the pair is not the pair."""
    return thing.tags.get(OWNER) == owner and thing.cluster != "" and cluster in (None, thing.cluster)


def instances(things: Iterable[TaggedResource]) -> list[TaggedResource]:
    """The instances that may be billed."""
    return [thing for thing in things if thing.kind == "instance" and thing.alive]
