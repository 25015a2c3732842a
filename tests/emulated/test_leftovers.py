"""The sweep by tag, against the emulated region: it ends all of one cluster, and nothing of anybody else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from nexa_dist.run.aws import dangling, end_tagged
from nexa_dist.run.aws.end_tagged import sweep
from nexa_dist.run.aws.tagged import KINDS, TaggedResource, find, instances, tag_launched
from tests.cloud import moto_hidden
from tests.unit.cloud_server import HOME, Emulated

NAME = "nexa-same-name"
POLICY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}'
Tags = Mapping[str, str]


def tags(cluster: str, owner: str = "ann") -> dict[str, str]:
    return {"nexa:cluster": cluster, "nexa:owner": owner, "Name": NAME}


def listed(given: Tags) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in given.items()]


def spec(given: Tags, *kinds: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": listed(given)} for kind in kinds]


class Maker:
    """Makes things with the given tags, and remembers their ids by kind."""

    def __init__(self, region: Emulated, given: Tags) -> None:
        self.region, self.ec2, self.tags = region, region.ec2, dict(given)
        self.made: dict[str, set[str]] = {}

    def add(self, kind: str, ident: str) -> str:
        self.made.setdefault(kind, set()).add(ident)
        return ident

    def spec(self, kind: str) -> Any:
        return spec(self.tags, kind)

    def instance(self, **how: Any) -> str:
        options = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}
        made = self.ec2.run_instances(
            ImageId=self.region.image,
            InstanceType="g5.xlarge",
            MinCount=1,
            MaxCount=1,
            InstanceMarketOptions=options,
            TagSpecifications=spec(self.tags, "instance", "volume", "network-interface", "spot-instances-request"),
            **how,
        )["Instances"][0]
        self.add("spot request", made["SpotInstanceRequestId"])
        return self.add("instance", made["InstanceId"])

    def key_pair(self) -> str:
        made = self.ec2.create_key_pair(
            KeyName=self.region.name(), KeyType="ed25519", TagSpecifications=self.spec("key-pair")
        )
        return self.add("key pair", made["KeyPairId"])

    def volume(self) -> str:
        made = self.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, TagSpecifications=self.spec("volume"))
        return self.add("volume", made["VolumeId"])

    def group(self, vpc: str) -> str:
        made = self.ec2.create_security_group(
            GroupName=self.region.name(), Description="x", VpcId=vpc, TagSpecifications=self.spec("security-group")
        )
        return self.add("security group", made["GroupId"])

    def network(self) -> tuple[str, str]:
        """(VPC, subnet) with a gateway, a route table and two groups that name each other."""
        ec2 = self.ec2
        vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16", TagSpecifications=self.spec("vpc"))["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.0.0/24", TagSpecifications=self.spec("subnet"))
        where = self.add("subnet", subnet["Subnet"]["SubnetId"])
        gate = ec2.create_internet_gateway(TagSpecifications=self.spec("internet-gateway"))["InternetGateway"]
        ec2.attach_internet_gateway(InternetGatewayId=gate["InternetGatewayId"], VpcId=vpc)
        self.add("internet gateway", gate["InternetGatewayId"])
        routes = ec2.create_route_table(VpcId=vpc, TagSpecifications=self.spec("route-table"))["RouteTable"]
        ec2.associate_route_table(RouteTableId=self.add("route table", routes["RouteTableId"]), SubnetId=where)
        one, two = self.group(vpc), self.group(vpc)
        for group, other in ((one, two), (two, one)):
            pair = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": other}]}]
            ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=pair)
        return self.add("vpc", vpc), where

    def rest(self, subnet: str) -> None:
        """Address, network interface, launch template, placement group."""
        ec2 = self.ec2
        self.add("address", ec2.allocate_address(TagSpecifications=self.spec("elastic-ip"))["AllocationId"])
        card = ec2.create_network_interface(SubnetId=subnet, TagSpecifications=self.spec("network-interface"))
        self.add("network interface", card["NetworkInterface"]["NetworkInterfaceId"])
        template = ec2.create_launch_template(
            LaunchTemplateName=self.region.name(),
            LaunchTemplateData={"InstanceType": "g5.xlarge"},
            TagSpecifications=self.spec("launch-template"),
        )
        self.add("launch template", template["LaunchTemplate"]["LaunchTemplateId"])
        group = self.add("placement group", self.region.name())
        ec2.create_placement_group(GroupName=group, Strategy="cluster", TagSpecifications=self.spec("placement-group"))

    def profile(self, path: str) -> None:
        """An instance profile with its role, with a policy of its own and an attached one."""
        iam, name = self.region.iam, self.region.name()
        iam.create_role(RoleName=name, Path=path, AssumeRolePolicyDocument="{}", Tags=listed(self.tags))
        iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=POLICY)
        iam.create_instance_profile(InstanceProfileName=name, Path=path, Tags=listed(self.tags))
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        self.add("instance profile", self.add("role", name))


def swept(cluster: str, rounds: int = 40) -> tuple[list[TaggedResource], list[str], list[str]]:
    said: list[str] = []
    done, errors = sweep(lambda: find(HOME, "ann", cluster), said.append, lambda _: time.sleep(0.08), rounds)
    return done, errors, said


def test_everything_of_a_cluster_goes_in_order_and_no_decoy_does(emulated_region: Emulated) -> None:
    ours = emulated_region.name()
    mine = Maker(emulated_region, tags(ours))
    _, subnet = mine.network()
    mine.instance(SubnetId=subnet)
    mine.rest(subnet)
    mine.volume()
    mine.key_pair()
    mine.profile(f"/nexa/{ours}/")
    decoys = [
        Maker(emulated_region, given)
        for given in (
            {"Name": NAME},
            {"Name": NAME, "nexa:cluster": ours},
            {"Name": NAME, "nexa:owner": "ann"},
            tags(ours, owner="bob"),
            tags(ours + "x"),
            tags(ours, owner="ann2"),
            {**tags(ours), "nexa:owner": "ANN"},
        )
    ]
    for decoy in decoys:
        decoy.key_pair()
        decoy.volume()
    for decoy in decoys[2:4]:
        decoy.profile(f"/nexa/{ours}/")
    decoys[1].instance()

    found = find(HOME, "ann", ours)
    assert {kind: {t.id for t in found if t.kind == kind} for kind in mine.made} == mine.made | {
        "volume": {t.id for t in found if t.kind == "volume"},  # the instance's own disk and card too
        "network interface": {t.id for t in found if t.kind == "network interface"},
    }
    done, errors, said = swept(ours)
    assert errors == []
    assert [t for t in find(HOME, "ann", ours) if t.alive] == []
    assert {kind.name for kind in KINDS} - {t.kind for t in done} <= {"vpc endpoint"}
    assert said[0].startswith("instance ") and said[0].endswith(" spot: ending")
    machines = [line for line in said if line.startswith(("instance i", "spot request"))]
    assert said[: len(machines)] == machines  # while an instance lives, what it uses cannot go
    there = emulated_region.ids()
    for decoy in decoys:
        assert decoy.made["key pair"] | decoy.made["volume"] <= there
        for name in decoy.made.get("role", ()):
            assert emulated_region.iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
    assert instances(find(HOME, "ann", ours)) == [] != find(HOME, "ann", ours)  # the dead ones are still told
    (decoy_instance,) = decoys[1].made["instance"]
    told = emulated_region.ec2.describe_instances(InstanceIds=[decoy_instance])["Reservations"][0]["Instances"][0]
    assert told["State"]["Name"] in ("pending", "running")


def test_what_was_launched_without_tags_is_found_by_its_instance(emulated_region: Emulated) -> None:
    """EC2's reference leaves open whether a launch template's tags stay when the request has tags of its own."""
    ours = emulated_region.name()
    given = {**tags(ours), "CostCenter": "1234"}
    emulated_region.control.fault("overwritten")
    template = emulated_region.ec2.create_launch_template(
        LaunchTemplateName=emulated_region.name(),
        LaunchTemplateData={"TagSpecifications": spec(given, "network-interface", "spot-instances-request")},
        TagSpecifications=spec(given, "launch-template"),
    )["LaunchTemplate"]["LaunchTemplateId"]
    made = emulated_region.ec2.run_instances(
        ImageId=emulated_region.image,
        InstanceType="g5.xlarge",
        MinCount=1,
        MaxCount=1,
        LaunchTemplate={"LaunchTemplateId": template},
        InstanceMarketOptions={"MarketType": "spot"},
        TagSpecifications=spec(given, "instance", "volume"),
    )["Instances"][0]
    emulated_region.control.clear()
    card, spot = made["NetworkInterfaces"][0]["NetworkInterfaceId"], made["SpotInstanceRequestId"]
    subnet = emulated_region.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    other = emulated_region.ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"]
    emulated_region.ec2.attach_network_interface(NetworkInterfaceId=other, InstanceId=made["InstanceId"], DeviceIndex=1)
    holdings = emulated_region.control.state()["resources"]
    assert holdings["network_interfaces"][card] == {} and holdings["spot_requests"][spot] == {}, "the fault is there"

    found = find(HOME, "ann", ours)
    assert {(t.kind, t.id) for t in found if t.id in (card, spot, other)} == {
        ("network interface", card),
        ("spot request", spot),
    }, "what somebody attached is his"
    tag_launched(found)
    holdings = emulated_region.control.state()["resources"]
    assert holdings["network_interfaces"][card] == holdings["spot_requests"][spot] == given
    assert holdings["network_interfaces"][other] == {}
    done, errors, _ = swept(ours)
    assert {spot, made["InstanceId"], template} <= {thing.id for thing in done} and errors == []
    assert emulated_region.ids() & {card, spot, other} == {other}


def test_the_owners_things_of_all_clusters_have_a_cluster(emulated_region: Emulated) -> None:
    """Half of the pair of tags is not the pair, also where no filter of the cloud sees to it."""
    owner = emulated_region.name()
    one, two = emulated_region.name(), emulated_region.name()
    for given in (tags(one, owner), tags(two, owner), {"nexa:owner": owner}):
        made = Maker(emulated_region, given)
        made.key_pair()
        made.profile("/nexa/")
    assert {t.cluster for t in find(HOME, owner)} == {one, two}
    assert {t.cluster for t in find(HOME, owner, one)} == {one}


def test_another_region_is_another_place(emulated_region: Emulated) -> None:
    ours = emulated_region.name()
    Maker(emulated_region, tags(ours)).key_pair()
    assert find("us-west-2", "ann", ours) == []


def test_what_cannot_go_is_told_and_the_sweep_ends(emulated_region: Emulated) -> None:
    ours = emulated_region.name()
    mine = Maker(emulated_region, tags(ours))
    stuck, gone = mine.volume(), mine.key_pair()
    emulated_region.control.fault("error", call="DeleteVolume", code="VolumeInUse", status=400)
    waits: list[float] = []
    done, errors = sweep(lambda: find(HOME, "ann", ours), lambda _: None, waits.append, rounds=3)
    assert len(errors) == 1 and stuck in errors[0] and "VolumeInUse" in errors[0]
    assert waits == [end_tagged.PAUSE_S] * 2
    assert (
        {t.id for t in done} == {stuck, gone} and stuck in emulated_region.ids() and gone not in emulated_region.ids()
    )


def test_what_is_gone_already_is_no_error(emulated_region: Emulated) -> None:
    ours = emulated_region.name()
    mine = Maker(emulated_region, tags(ours))
    mine.volume()
    mine.key_pair()
    found = find(HOME, "ann", ours)
    assert [end_tagged.end(thing) for thing in found] == ["", ""]
    assert [end_tagged.end(thing) for thing in found] == ["", ""]


def test_what_the_cloud_hides_is_found_later(emulated_region: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, now = emulated_region.name(), [1000.0]
    monkeypatch.setattr(moto_hidden, "time", SimpleNamespace(time=lambda: now[0]))
    emulated_region.control.fault("hidden", seconds=0.3)
    mine = Maker(emulated_region, tags(ours))
    mine.volume()
    assert find(HOME, "ann", ours) == []
    now[0] += 0.31
    assert [t.kind for t in find(HOME, "ann", ours)] == ["volume"]


@pytest.mark.parametrize(("state", "alive"), [("terminated", False), ("running", True)])
def test_a_thing_says_what_it_is(state: str, alive: bool) -> None:
    row = {"InstanceType": "g5.xlarge", "Placement": {"AvailabilityZone": "us-east-1a"}, "InstanceLifecycle": "spot"}
    thing = TaggedResource("instance", "i-1", HOME, state, alive, {"nexa:cluster": "c"}, row)
    assert (thing.offer, thing.cluster, thing.since_unix) == ("g5.xlarge us-east-1a spot", "c", None)
    assert instances([thing]) == ([thing] if alive else [])
    assert thing.to_json() == {"kind": "instance", "id": "i-1", "region": HOME, "state": state}


def test_only_what_no_state_knows_is_taken_off_what_it_knows(emulated_region: Emulated) -> None:
    ours, ec2 = emulated_region.name(), emulated_region.ec2
    mine = Maker(emulated_region, tags(ours))
    mine.network()

    def there() -> tuple[set[str], set[str]]:
        groups = [{"Name": "group-id", "Values": sorted(mine.made["security group"])}]
        found = ec2.describe_security_group_rules(Filters=groups)["SecurityGroupRules"]
        tables = ec2.describe_route_tables(RouteTableIds=sorted(mine.made["route table"]))["RouteTables"]
        associations = {row["RouteTableAssociationId"] for table in tables for row in table["Associations"]}
        return {row["SecurityGroupRuleId"] for row in found}, associations

    rules, [association] = there()
    spared = sorted(rules)[0]
    assert list(dangling.take_off(find(HOME, "ann", ours), {spared})) == []  # on what itself goes as a whole
    assert there() == (rules, {association})
    known = mine.made["security group"] | mine.made["route table"] | {spared}
    said = list(dangling.take_off(find(HOME, "ann", ours), known))
    assert there() == ({spared}, set())
    assert len(said) == len(rules) and any("subnet-" in line for line in said)
    assert list(dangling.take_off(find(HOME, "ann", ours), known)) == []
