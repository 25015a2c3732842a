"""One emulated region for a module's tests, without hosts, and boto3 clients of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from tests.cloud.client import Region
from tests.cloud.types import HostSpec, NoHosts, Pace
from tests.unit.cloud_server import Emulated, emulated
from tests.unit.conftest import desk

if TYPE_CHECKING:
    from tests.cloud.api import Server

__all__ = ["desk"]

AMI_PATH = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
FAST = Pace(pending_s=0.03, shutting_down_s=0.05, forget_s=600.0)


class Recorder(NoHosts):
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: dict[str, HostSpec] = {}
        self.asked: list[tuple[str, str]] = []
        self.notices: dict[str, float | None] = {}

    def boot(self, spec: HostSpec) -> None:
        super().boot(spec)
        self.specs[spec.instance_id] = spec

    def power_off(self, instance_id: str) -> None:
        super().power_off(instance_id)
        self.asked.append(("power_off", instance_id))

    def partition(self, instance_id: str, cut: bool) -> None:
        self.asked.append(("cut" if cut else "heal", instance_id))

    def notice(self, instance_id: str, at_unix: float | None) -> None:
        self.notices[instance_id] = at_unix


@dataclass
class Cloud:
    """The region with its control, and short ways to make things in it. Every name and tag of a call is new."""

    server: Server
    hosts: Recorder
    region: Region
    client: Callable[[str], Any]
    ec2: Any
    ssm: Any
    number: Iterator[int] = field(default_factory=itertools.count)

    def tags(self, cluster: str, owner: str = "me") -> list[dict[str, str]]:
        return [{"Key": "nexa:cluster", "Value": cluster}, {"Key": "nexa:owner", "Value": owner}]

    def spec(self, cluster: str, *kinds: str, owner: str = "me") -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": self.tags(cluster, owner)} for kind in kinds]

    def own(self, cluster: str, owner: str = "me") -> list[dict[str, Any]]:
        return [{"Name": f"tag:{tag['Key']}", "Values": [tag["Value"]]} for tag in self.tags(cluster, owner)]

    def name(self) -> str:
        return f"c{next(self.number)}"

    def ami(self) -> str:
        found: str = self.ssm.get_parameter(Name=AMI_PATH)["Parameter"]["Value"]
        return found

    def run(self, **how: Any) -> Any:
        """One instance, spot unless `market` says otherwise."""
        market = how.pop("market", "spot")
        options = {"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}
        asked = {"ImageId": self.ami(), "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1, **options, **how}
        return self.ec2.run_instances(**asked)["Instances"][0]

    def subnet(self, cidr: str = "10.77.0.0/24", zone: str = "us-east-1b") -> tuple[str, str]:
        """(VPC id, subnet id)"""
        vpc = self.ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
        made = self.ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)
        return vpc, made["Subnet"]["SubnetId"]

    def show(self, instance_id: str) -> Any:
        return self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]

    def until(self, instance_id: str, state: str) -> Any:
        """Waits for a state of the instance and shows it then."""
        self.region.wait(lambda now: [i for i in now["instances"] if i["id"] == instance_id and i["state"] == state])
        return self.show(instance_id)

    def end(self, instance_id: str) -> Any:
        self.ec2.terminate_instances(InstanceIds=[instance_id])
        return self.until(instance_id, "terminated")


@pytest.fixture(scope="module")
def _served() -> Iterator[Cloud]:
    from tests.cloud.api import serve  # with moto: seconds, where only some workers need it

    hosts = Recorder()
    server = serve("127.0.0.1", 0, hosts, FAST)
    once = Config(retries={"total_max_attempts": 1}, proxies={}, connect_timeout=300, read_timeout=300)
    session: Any = boto3.Session("test", "test", region_name="us-east-1")

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=server.url, config=once)

    yield Cloud(server, hosts, Region(server.url), client, client("ec2"), client("ssm"))
    server.close()


@pytest.fixture
def cloud(_served: Cloud) -> Iterator[Cloud]:
    yield _served
    _served.region.clear()


@pytest.fixture(scope="module")
def _emulated() -> Iterator[Emulated]:
    yield from emulated()


@pytest.fixture
def emulated_region(_emulated: Emulated) -> Iterator[Emulated]:
    yield _emulated
    _emulated.control.clear()
