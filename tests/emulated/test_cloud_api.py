"""What the emulated region adds to moto, by boto3."""

from __future__ import annotations

import base64
import ipaddress
import json
import socket
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.cloud.api import PROVIDER_WAITS_S
from tests.cloud.types import Pace
from tests.emulated.conftest import FAST, Cloud

ROOT = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeType": "gp3", "VolumeSize": 50, "DeleteOnTermination": True}}


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    found: str = error.value.response["Error"]["Code"]
    return found


def test_terraforms_provider_is_answered_late_and_in_one_piece(cloud: Cloud) -> None:
    """Decision 218. Only that it is late enough can be told, so that a busy machine changes nothing."""
    asked = "Action=DescribeVpcs&Version=2016-11-15"
    lines = [
        "POST / HTTP/1.1",
        "Host: region",
        "User-Agent: APN/1.0 HashiCorp/1.0 Terraform/1.11.4 terraform-provider-aws/5.100.0",
        "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/ec2/aws4_request, Signature=none",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(asked)}",
    ]
    address = urlsplit(cloud.server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as caller:
        begun = time.monotonic()
        caller.sendall("\r\n".join([*lines, "", asked]).encode())
        piece = caller.recv(1 << 20)
    assert time.monotonic() - begun >= PROVIDER_WAITS_S
    assert piece.startswith(b"HTTP/1.1 200 OK")
    assert piece.endswith(b"</DescribeVpcsResponse>")


def test_placement_group_is_in_use_until_its_instances_are_gone(cloud: Cloud) -> None:
    name = cloud.name()
    cloud.ec2.create_placement_group(
        GroupName=name, Strategy="cluster", TagSpecifications=cloud.spec(name, "placement-group")
    )
    with pytest.raises(ClientError) as twice:
        cloud.ec2.create_placement_group(GroupName=name, Strategy="cluster")
    assert code(twice) == "InvalidPlacementGroup.Duplicate"
    node = cloud.run(Placement={"GroupName": name})
    assert node["Placement"]["GroupName"] == name
    with pytest.raises(ClientError) as busy:
        cloud.ec2.delete_placement_group(GroupName=name)
    assert code(busy) == "InvalidPlacementGroup.InUse"
    cloud.end(node["InstanceId"])
    cloud.ec2.delete_placement_group(GroupName=name)
    assert cloud.ec2.describe_placement_groups(Filters=cloud.own(name))["PlacementGroups"] == []
    with pytest.raises(ClientError) as gone:
        cloud.run(Placement={"GroupName": name})
    assert code(gone) == "InvalidPlacementGroup.Unknown"


def test_spot_instance_has_a_request_that_closes_with_it(cloud: Cloud) -> None:
    name = cloud.name()
    node = cloud.run(TagSpecifications=cloud.spec(name, "instance", "spot-instances-request"))
    assert node["InstanceLifecycle"] == "spot"
    asked = {"SpotInstanceRequestIds": [node["SpotInstanceRequestId"]]}
    request = cloud.ec2.describe_spot_instance_requests(**asked)["SpotInstanceRequests"][0]
    assert (request["State"], request["Type"], request["InstanceId"]) == ("active", "one-time", node["InstanceId"])
    assert request["InstanceInterruptionBehavior"] == "terminate"
    found = cloud.ec2.describe_spot_instance_requests(Filters=cloud.own(name))["SpotInstanceRequests"]
    assert [r["SpotInstanceRequestId"] for r in found] == asked["SpotInstanceRequestIds"]
    with pytest.raises(ClientError) as stopped:
        cloud.ec2.stop_instances(InstanceIds=[node["InstanceId"]])
    assert code(stopped) == "UnsupportedOperation"
    cloud.ec2.cancel_spot_instance_requests(**asked)
    assert cloud.show(node["InstanceId"])["State"]["Name"] in ("pending", "running")
    other = cloud.run()
    cloud.end(other["InstanceId"])
    asked = {"SpotInstanceRequestIds": [other["SpotInstanceRequestId"]]}
    request = cloud.ec2.describe_spot_instance_requests(**asked)["SpotInstanceRequests"][0]
    assert (request["State"], request["Status"]["Code"]) == ("closed", "instance-terminated-by-user")


def test_launch_template_is_honoured_in_full(cloud: Cloud) -> None:
    name, (vpc, subnet) = cloud.name(), cloud.subnet()
    group = cloud.ec2.create_security_group(GroupName=name, Description="d", VpcId=vpc)["GroupId"]
    nic = {"DeviceIndex": 0, "SubnetId": subnet, "Groups": [group], "AssociatePublicIpAddress": False}
    data = {
        "UserData": base64.b64encode(b"#!/bin/sh\n").decode(),
        "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "InstanceMarketOptions": {"MarketType": "spot"},
        "NetworkInterfaces": [nic],
        "BlockDeviceMappings": [ROOT],
        "TagSpecifications": cloud.spec(name, "network-interface", "volume"),
    }
    made = cloud.ec2.create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData=data, TagSpecifications=cloud.spec(name, "launch-template")
    )["LaunchTemplate"]
    from_it = {"LaunchTemplateId": made["LaunchTemplateId"], "Version": "1"}
    node = cloud.run(LaunchTemplate=from_it, market="as the template says")
    assert node["SubnetId"] == subnet
    assert [g["GroupId"] for g in node["SecurityGroups"]] == [group]
    assert node["MetadataOptions"]["HttpTokens"] == "required"
    assert node["InstanceLifecycle"] == "spot"
    assert "PublicIpAddress" not in node
    for attribute, value in (("userData", data["UserData"]), ("instanceInitiatedShutdownBehavior", "terminate")):
        shown = cloud.ec2.describe_instance_attribute(InstanceId=node["InstanceId"], Attribute=attribute)
        assert shown[attribute[0].upper() + attribute[1:]]["Value"] == value
    assert cloud.hosts.specs[node["InstanceId"]].user_data == b"#!/bin/sh\n"
    interfaces = cloud.ec2.describe_network_interfaces(Filters=cloud.own(name))["NetworkInterfaces"]
    assert [i["NetworkInterfaceId"] for i in interfaces] == [node["NetworkInterfaces"][0]["NetworkInterfaceId"]]
    volumes = cloud.ec2.describe_volumes(Filters=cloud.own(name))["Volumes"]
    assert [(v["Size"], v["Iops"], v["Throughput"]) for v in volumes] == [(50, 3000, 125)]
    shown = cloud.ec2.describe_launch_template_versions(LaunchTemplateId=made["LaunchTemplateId"])
    kinds = [t["ResourceType"] for t in shown["LaunchTemplateVersions"][0]["LaunchTemplateData"]["TagSpecifications"]]
    assert kinds == ["network-interface", "volume"]


def test_network_cards_have_interfaces_of_their_own(cloud: Cloud) -> None:
    _, subnet = cloud.subnet()
    cards = [{"NetworkCardIndex": card, "DeviceIndex": int(card > 0), "SubnetId": subnet} for card in range(3)]
    node = cloud.run(InstanceType="p4d.24xlarge", NetworkInterfaces=cards)
    attached = [n["Attachment"] for n in cloud.show(node["InstanceId"])["NetworkInterfaces"]]
    assert sorted((a["NetworkCardIndex"], a["DeviceIndex"]) for a in attached) == [(0, 0), (1, 1), (2, 1)]
    cloud.end(node["InstanceId"])
    left = cloud.ec2.describe_network_interfaces(Filters=[{"Name": "subnet-id", "Values": [subnet]}])
    assert left["NetworkInterfaces"] == []


def test_client_token_launches_once(cloud: Cloud) -> None:
    token = cloud.name()
    first, again = cloud.run(ClientToken=token), cloud.run(ClientToken=token)
    assert first["InstanceId"] == again["InstanceId"]
    with pytest.raises(ClientError) as other:
        cloud.run(ClientToken=token, InstanceType="g5.2xlarge")
    assert code(other) == "IdempotentParameterMismatch"
    found = cloud.ec2.describe_instances(Filters=[{"Name": "client-token", "Values": [token]}])["Reservations"]
    assert len(found) == 1


def test_addresses_are_unique_and_inside_their_networks(cloud: Cloud) -> None:
    public = {"DeviceIndex": 0, "AssociatePublicIpAddress": True}
    nodes = [cloud.run(NetworkInterfaces=[{**public, "SubnetId": cloud.subnet()[1]}]) for _ in range(3)]
    nodes.append(cloud.run())
    addresses = [ipaddress.ip_address(node["PublicIpAddress"]) for node in nodes]
    assert len(set(addresses)) == 4
    assert all(address in ipaddress.ip_network("203.0.113.0/24") for address in addresses)
    for node in nodes:
        spec = cloud.hosts.specs[node["InstanceId"]]
        assert ipaddress.ip_address(spec.private_ip) in ipaddress.ip_network(spec.subnet_cidr)
        assert (spec.private_ip, spec.public_ip) == (node["PrivateIpAddress"], node["PublicIpAddress"])
        assert spec.private_ip != "10.77.0.1"


def test_key_pair_is_a_claim_on_its_name(cloud: Cloud) -> None:
    name = cloud.name()
    public = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    asked = {"KeyName": name, "PublicKeyMaterial": public}
    cloud.ec2.import_key_pair(**asked, TagSpecifications=cloud.spec(name, "key-pair"))
    with pytest.raises(ClientError) as twice:
        cloud.ec2.import_key_pair(**asked)
    assert code(twice) == "InvalidKeyPair.Duplicate"
    assert [k["KeyName"] for k in cloud.ec2.describe_key_pairs(Filters=cloud.own(name))["KeyPairs"]] == [name]
    node = cloud.run(KeyName=name)
    assert cloud.hosts.specs[node["InstanceId"]].public_key == public.decode()
    key_id = cloud.ec2.describe_key_pairs(KeyNames=[name])["KeyPairs"][0]["KeyPairId"]
    cloud.ec2.delete_key_pair(KeyPairId=key_id)
    assert cloud.ec2.describe_key_pairs(Filters=cloud.own(name))["KeyPairs"] == []
    with pytest.raises(ClientError) as unknown:
        cloud.run(KeyName="nobody")
    assert code(unknown) == "InvalidKeyPair.NotFound"


def make_one_of_each(cloud: Cloud, name: str, owner: str) -> None:
    def spec(*kinds: str) -> list[dict[str, Any]]:
        return cloud.spec(name, *kinds, owner=owner)

    ec2, label = cloud.ec2, f"{name}-{owner}"
    vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16", TagSpecifications=spec("vpc"))["Vpc"]["VpcId"]
    ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.0.0/24", TagSpecifications=spec("subnet"))
    group = {"GroupName": label, "Description": "d", "VpcId": vpc}
    group_id = ec2.create_security_group(**group, TagSpecifications=spec("security-group"))["GroupId"]
    pair = {"GroupId": group_id, "Description": "between nodes"}
    ec2.authorize_security_group_ingress(
        GroupId=group_id,
        IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [pair]}],
        TagSpecifications=spec("security-group-rule"),
    )
    ec2.create_internet_gateway(TagSpecifications=spec("internet-gateway"))
    table = ec2.create_route_table(VpcId=vpc, TagSpecifications=spec("route-table"))["RouteTable"]["RouteTableId"]
    ec2.create_vpc_endpoint(
        VpcId=vpc,
        ServiceName="com.amazonaws.us-east-1.s3",
        RouteTableIds=[table],
        TagSpecifications=spec("vpc-endpoint"),
    )
    ec2.create_key_pair(KeyName=label, KeyType="ed25519", TagSpecifications=spec("key-pair"))
    ec2.create_placement_group(GroupName=label, Strategy="cluster", TagSpecifications=spec("placement-group"))
    template = {"LaunchTemplateName": label, "LaunchTemplateData": {"InstanceType": "g5.xlarge"}}
    ec2.create_launch_template(**template, TagSpecifications=spec("launch-template"))
    ec2.allocate_address(Domain="vpc", TagSpecifications=spec("elastic-ip"))
    cloud.run(TagSpecifications=spec("instance", "volume", "network-interface", "spot-instances-request"))


def test_every_sweep_finds_exactly_its_own_by_tag(cloud: Cloud) -> None:
    name = cloud.name()
    make_one_of_each(cloud, name, "me")
    make_one_of_each(cloud, name, "another")
    kinds = {
        "instances": "Reservations",
        "volumes": "Volumes",
        "network_interfaces": "NetworkInterfaces",
        "security_groups": "SecurityGroups",
        "security_group_rules": "SecurityGroupRules",
        "key_pairs": "KeyPairs",
        "launch_templates": "LaunchTemplates",
        "placement_groups": "PlacementGroups",
        "spot_instance_requests": "SpotInstanceRequests",
        "addresses": "Addresses",
        "subnets": "Subnets",
        "vpcs": "Vpcs",
        "route_tables": "RouteTables",
        "internet_gateways": "InternetGateways",
        "vpc_endpoints": "VpcEndpoints",
    }
    counts = {
        kind: len(getattr(cloud.ec2, f"describe_{kind}")(Filters=cloud.own(name))[key]) for kind, key in kinds.items()
    }
    assert counts == dict.fromkeys(kinds, 1)
    rules = cloud.ec2.describe_security_group_rules(Filters=cloud.own(name))["SecurityGroupRules"]
    assert rules[0]["Description"] == "between nodes"


def test_what_is_in_use_cannot_be_deleted(cloud: Cloud) -> None:
    vpc, subnet = cloud.subnet()
    group = cloud.ec2.create_security_group(GroupName=cloud.name(), Description="d", VpcId=vpc)["GroupId"]
    node = cloud.run(SubnetId=subnet, SecurityGroupIds=[group])
    with pytest.raises(ClientError) as group_busy:
        cloud.ec2.delete_security_group(GroupId=group)
    with pytest.raises(ClientError) as subnet_busy:
        cloud.ec2.delete_subnet(SubnetId=subnet)
    assert code(group_busy) == code(subnet_busy) == "DependencyViolation"
    cloud.end(node["InstanceId"])
    cloud.ec2.delete_security_group(GroupId=group)
    cloud.ec2.delete_subnet(SubnetId=subnet)


def test_terminated_instance_goes_through_its_states_and_is_forgotten(cloud: Cloud) -> None:
    name = cloud.name()
    spec = cloud.spec(name, "instance", "volume", "network-interface")
    node = cloud.run(TagSpecifications=spec, BlockDeviceMappings=[ROOT])["InstanceId"]
    assert cloud.show(node)["State"]["Name"] in ("pending", "running")
    assert cloud.until(node, "running")["State"]["Code"] == 16
    cloud.ec2.terminate_instances(InstanceIds=[node])
    assert cloud.show(node)["State"]["Name"] in ("shutting-down", "terminated")
    assert ("power_off", node) in cloud.hosts.asked
    assert cloud.until(node, "terminated")["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    again = cloud.ec2.terminate_instances(InstanceIds=[node])["TerminatingInstances"][0]
    assert (again["InstanceId"], again["CurrentState"]["Name"]) == (node, "terminated")
    assert cloud.ec2.describe_volumes(Filters=cloud.own(name))["Volumes"] == []
    assert cloud.ec2.describe_network_interfaces(Filters=cloud.own(name))["NetworkInterfaces"] == []
    life = cloud.server.world.life
    life.pace = Pace(FAST.pending_s, FAST.shutting_down_s, forget_s=0.0)
    try:
        cloud.region.wait(lambda now: node not in [i["id"] for i in now["instances"]])
    finally:
        life.pace = FAST
    with pytest.raises(ClientError) as gone:
        cloud.show(node)
    assert code(gone) == "InvalidInstanceID.NotFound"


@pytest.mark.parametrize(("behaviour", "state"), [("terminate", "terminated"), ("stop", "stopped")])
def test_power_off_from_inside_does_what_the_shutdown_behaviour_says(cloud: Cloud, behaviour: str, state: str) -> None:
    node = cloud.run(market="on_demand", InstanceInitiatedShutdownBehavior=behaviour)["InstanceId"]
    cloud.hosts.on_off(node, "poweroff")
    assert cloud.until(node, state)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    if state == "stopped":
        cloud.ec2.start_instances(InstanceIds=[node])
        cloud.until(node, "running")
        assert cloud.hosts.states()[node] == "up"


def test_latest_image_moves_and_both_exist(cloud: Cloud) -> None:
    before = cloud.ami()
    assert cloud.ami() == before
    cloud.region.new_ami()
    after = cloud.ami()
    assert after != before
    images = cloud.ec2.describe_images(ImageIds=[before, after])["Images"]
    assert [image["RootDeviceName"] for image in images] == ["/dev/sda1", "/dev/sda1"]


def test_spot_prices_differ_by_zone_and_move(cloud: Cloud) -> None:
    opened = cloud.server.world.prices.since_unix

    def history(zone: str, **more: Any) -> list[float]:
        asked = {"InstanceTypes": ["g6.12xlarge"], "AvailabilityZone": zone, "ProductDescriptions": ["Linux/UNIX"]}
        rows = cloud.ec2.describe_spot_price_history(**asked, **more)["SpotPriceHistory"]
        assert all(int(opened) <= row["Timestamp"].timestamp() <= time.time() for row in rows)
        return [float(row["SpotPrice"]) for row in rows]

    first = history("us-east-1a")
    assert first < history("us-east-1b")
    cloud.region.price("g6.12xlarge", "us-east-1a", 9.5)
    assert history("us-east-1a") == [9.5, *first]
    assert history("us-east-1a", StartTime=time.time()) == [9.5]
    with pytest.raises(ClientError) as dear:
        options = {"MarketType": "spot", "SpotOptions": {"MaxPrice": "9.4"}}
        place = {"AvailabilityZone": "us-east-1a"}
        cloud.run(InstanceType="g6.12xlarge", Placement=place, InstanceMarketOptions=options)
    assert code(dear) == "SpotMaxPriceTooLow"


def test_bill_counts_seconds_and_at_least_a_minute(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.region.price("g6.48xlarge", "us-east-1c", 36.0)
    now = [time.time()]
    clock = SimpleNamespace(time=lambda: now[0], gmtime=time.gmtime, strftime=time.strftime)
    monkeypatch.setattr("tests.cloud.moto_life.time", clock)
    node = cloud.run(InstanceType="g6.48xlarge", Placement={"AvailabilityZone": "us-east-1c"})["InstanceId"]
    now[0] += 20
    cloud.ec2.terminate_instances(InstanceIds=[node])
    now[0] += 1
    cloud.until(node, "terminated")
    line = next(row for row in cloud.region.bill()["instances"] if row["id"] == node)
    assert line["usd"] == pytest.approx(36.0 / 60)
    assert line["end_unix"] - line["launch_unix"] == pytest.approx(20)
    assert (line["market"], line["zone"]) == ("spot", "us-east-1c")


def test_unknown_action_is_refused_at_once(cloud: Cloud) -> None:
    with pytest.raises(ClientError) as lacking:
        cloud.ec2.describe_instance_topology()
    assert code(lacking) == "InvalidAction"


def test_instance_profiles_are_listed_below_a_path_with_their_tags(cloud: Cloud) -> None:
    name, iam = cloud.name(), cloud.client("iam")
    iam.create_instance_profile(InstanceProfileName=name, Path=f"/nexa/{name}/", Tags=cloud.tags(name))
    iam.create_instance_profile(InstanceProfileName=f"{name}-other")
    found = iam.list_instance_profiles(PathPrefix="/nexa/")["InstanceProfiles"]
    assert [profile["InstanceProfileName"] for profile in found] == [name]
    assert iam.list_instance_profile_tags(InstanceProfileName=name)["Tags"] == cloud.tags(name)
    assert cloud.region.state()["resources"]["instance_profiles"][name]["nexa:cluster"] == name


def test_a_ban_of_plain_http_bans_nothing_here_and_any_other_ban_does(cloud: Cloud) -> None:
    s3, name = cloud.client("s3"), "nexa-ban-of-plain-http"
    s3.create_bucket(Bucket=name)
    ban = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{name}/*"}
    http = {**ban, "Condition": {"Bool": {"aws:SecureTransport": "false"}}}
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [http]}))
    s3.put_object(Bucket=name, Key="a", Body=b"1")
    assert s3.get_object(Bucket=name, Key="a")["Body"].read() == b"1"
    assert s3.head_object(Bucket=name, Key="a")["ContentLength"] == 1
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [http, ban]}))
    with pytest.raises(ClientError) as banned:
        s3.put_object(Bucket=name, Key="b", Body=b"1")
    assert code(banned) in ("403", "AccessDenied")
