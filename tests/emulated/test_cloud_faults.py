"""Every fault of the emulated region, once."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.cloud import moto_hidden
from tests.cloud.types import HostState
from tests.emulated.conftest import FAST, Cloud, Recorder


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    found: str = error.value.response["Error"]["Code"]
    return found


def zone(letter: str) -> dict[str, dict[str, str]]:
    return {"Placement": {"AvailabilityZone": f"us-east-1{letter}"}}


def test_capacity_refuses_the_third_of_a_gang_and_no_other_zone(cloud: Cloud) -> None:
    cloud.region.fault("capacity", type="g5.xlarge", zone="us-east-1a", market="spot", after=2)
    for _ in range(2):
        cloud.run(**zone("a"))
    with pytest.raises(ClientError) as full:
        cloud.run(**zone("a"))
    assert code(full) == "InsufficientInstanceCapacity"
    assert full.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert cloud.run(**zone("b"))["State"]["Name"] == "pending"
    assert cloud.run(market="on_demand", **zone("a"))["State"]["Name"] == "pending"


@pytest.mark.parametrize("refusal", ["MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "Unsupported"])
def test_capacity_codes_of_the_caller_are_400(cloud: Cloud, refusal: str) -> None:
    cloud.region.fault("capacity", code=refusal, times=1)
    with pytest.raises(ClientError) as refused:
        cloud.run()
    assert code(refused) == refusal
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert cloud.run()["State"]["Name"] == "pending"


def test_throttle_strikes_at_its_rate(cloud: Cloud) -> None:
    cloud.region.fault("throttle", call="DescribeVpcs", rate=0.5)
    refused = 0
    for _ in range(6):
        try:
            cloud.ec2.describe_vpcs()
        except ClientError as error:
            assert error.response["Error"]["Code"] == "RequestLimitExceeded"
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 503
            refused += 1
    assert refused == 3


def test_error_speaks_the_protocol_of_its_service(cloud: Cloud) -> None:
    cloud.region.fault("error", call="Describe*", status=500, code="Unavailable", times=1)
    cloud.region.fault("error", call="GetParameter", status=400, code="AccessDeniedException", times=1)
    with pytest.raises(ClientError) as xml:
        cloud.ec2.describe_vpcs()
    with pytest.raises(ClientError) as json:
        cloud.ami()
    assert (code(xml), code(json)) == ("Unavailable", "AccessDeniedException")
    assert cloud.region.state()["errors"]["GetParameter: AccessDeniedException"] >= 1


def test_a_template_is_made_once_for_its_token(cloud: Cloud) -> None:
    asked: dict[str, Any] = {"LaunchTemplateName": cloud.name(), "ClientToken": cloud.name()}
    asked["LaunchTemplateData"] = {"InstanceType": "t3.micro"}
    cloud.region.fault("lost_reply", call="CreateLaunchTemplate", times=1)
    with pytest.raises(ConnectionClosedError):
        cloud.ec2.create_launch_template(**asked)
    made = cloud.ec2.create_launch_template(**asked)["LaunchTemplate"]
    assert made["LaunchTemplateName"] == asked["LaunchTemplateName"]
    with pytest.raises(ClientError) as other:
        cloud.ec2.create_launch_template(**{**asked, "LaunchTemplateData": {"InstanceType": "t3.small"}})
    assert code(other) == "IdempotentParameterMismatch"
    with pytest.raises(ClientError) as taken:
        cloud.ec2.create_launch_template(**{**asked, "ClientToken": cloud.name()})
    assert code(taken) == "InvalidLaunchTemplateName.AlreadyExistsException"


def test_lost_reply_leaves_what_the_call_made(cloud: Cloud) -> None:
    token = cloud.name()
    cloud.region.fault("lost_reply", call="RunInstances", times=1)
    before = len(cloud.region.state()["instances"])
    with pytest.raises(ConnectionClosedError):
        cloud.run(ClientToken=token)
    assert len(cloud.region.state()["instances"]) == before + 1
    again = cloud.run(ClientToken=token)["InstanceId"]
    assert again in [i["id"] for i in cloud.region.state()["instances"]]
    assert len(cloud.region.state()["instances"]) == before + 1


def test_new_ids_stay_hidden_for_a_while(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    name, now = cloud.name(), [1000.0]
    monkeypatch.setattr(moto_hidden, "time", SimpleNamespace(time=lambda: now[0]))
    cloud.region.fault("hidden", seconds=0.5)
    node = cloud.run(TagSpecifications=cloud.spec(name, "instance", "network-interface"))["InstanceId"]
    with pytest.raises(ClientError) as unknown:
        cloud.show(node)
    assert code(unknown) == "InvalidInstanceID.NotFound"
    assert cloud.ec2.describe_instances(Filters=cloud.own(name))["Reservations"] == []
    assert cloud.ec2.describe_network_interfaces(Filters=cloud.own(name))["NetworkInterfaces"] == []
    assert node in cloud.region.state()["resources"]["instances"]
    now[0] += 0.6
    assert cloud.show(node)["InstanceId"] == node
    assert len(cloud.ec2.describe_instances(Filters=cloud.own(name))["Reservations"]) == 1


def test_credentials_expire_after_some_calls(cloud: Cloud) -> None:
    cloud.region.fault("expired_credentials", after_calls=2)
    cloud.ec2.describe_vpcs()
    cloud.ec2.describe_vpcs()
    with pytest.raises(ClientError) as by_ec2:
        cloud.ec2.describe_vpcs()
    with pytest.raises(ClientError) as by_ssm:
        cloud.ami()
    assert (code(by_ec2), code(by_ssm)) == ("RequestExpired", "ExpiredTokenException")


def test_the_second_machine_never_boots(cloud: Cloud) -> None:
    cloud.region.fault("no_boot", nth=2)
    nodes = [cloud.run()["InstanceId"] for _ in range(3)]
    states: list[HostState] = [cloud.hosts.states()[node] for node in nodes]
    assert states == ["up", "failed", "up"]
    assert cloud.until(nodes[1], "running")["InstanceId"] == nodes[1]


def test_slow_call_does_not_hold_up_others(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep, over, asked = threading.Event(), threading.Event(), list[float]()

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        asleep.set()
        assert over.wait(90)

    monkeypatch.setattr("tests.cloud.api.time", SimpleNamespace(sleep=sleep))
    cloud.region.fault("slow", call="DescribeVpcs", seconds=0.6, times=1)
    slow = threading.Thread(target=cloud.ec2.describe_vpcs)
    slow.start()
    assert asleep.wait(90)
    cloud.ec2.describe_key_pairs()
    assert slow.is_alive() and asked == [0.6]
    over.set()
    slow.join()


def test_notice_comes_before_the_reclaim(cloud: Cloud) -> None:
    node = cloud.run()
    cloud.region.notice(node["InstanceId"], seconds=3600)
    at = cloud.hosts.notices[node["InstanceId"]]
    assert at is not None and 0 < at - time.time() <= 3600
    assert cloud.show(node["InstanceId"])["State"]["Name"] in ("pending", "running")
    cloud.region.notice(node["InstanceId"], seconds=0.3)
    gone = cloud.until(node["InstanceId"], "terminated")
    at = cloud.hosts.notices[node["InstanceId"]]
    assert at is not None and time.time() >= at
    assert gone["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    asked = {"SpotInstanceRequestIds": [node["SpotInstanceRequestId"]]}
    request = cloud.ec2.describe_spot_instance_requests(**asked)["SpotInstanceRequests"][0]
    assert (request["State"], request["Status"]["Code"]) == ("closed", "instance-terminated-by-price")


def test_reclaim_partition_and_heal_reach_the_machine(cloud: Cloud) -> None:
    node = cloud.run()["InstanceId"]
    cloud.region.partition(node)
    cloud.region.heal(node)
    cloud.region.reclaim(node)
    assert cloud.until(node, "terminated")["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    assert [what for what, whom in cloud.hosts.asked if whom == node] == ["cut", "heal", "power_off"]


def test_failed_machine_is_billed_on(cloud: Cloud) -> None:
    node = cloud.run()["InstanceId"]
    cloud.until(node, "running")
    cloud.region.fail(node)
    assert cloud.show(node)["State"]["Name"] == "running"
    checks = cloud.ec2.describe_instance_status(InstanceIds=[node])["InstanceStatuses"][0]
    assert checks["InstanceStatus"]["Status"] == "impaired"
    assert next(row for row in cloud.region.bill()["instances"] if row["id"] == node)["end_unix"] is None


def test_mistakes_of_a_test_are_refused(cloud: Cloud) -> None:
    for how in ({"kind": "capacity", "typ": "g5.xlarge"}, {"kind": "meteor"}, {"kind": "lost_reply"}):
        with pytest.raises(RuntimeError, match="fault"):
            cloud.region.fault(**how)
    with pytest.raises(RuntimeError, match="no instance i-0"):
        cloud.region.reclaim("i-0")
    from tests.cloud import moto_region

    with pytest.raises(RuntimeError, match="close that one first"):
        moto_region.open_world(Recorder(), FAST)
    assert cloud.region.state()["faults"] == []
