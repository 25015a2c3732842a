"""What others have put into our network: it is named at once, the rest goes, and theirs is left as it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from nexa_dist.errors import StillRunning
from nexa_dist.ops.cluster.teardown import teardown
from nexa_dist.ops.providers.aws import end as aws_end
from nexa_dist.ops.providers.scope_file import known_scope, scope_file
from nexa_dist.ops.runs.stop import stop
from nexa_dist.run import files
from nexa_dist.run.aws import end_tagged, strangers, tagged
from nexa_dist.run.aws.client import identity
from tests.emulated.test_leftovers import Maker, tags
from tests.unit.cloud_server import HOME, Desk, Emulated, scope

MOUNT = "EFS mount target for fs-0123 (fsmt-0456)"


class Lab:
    """A cluster's network with a mount target in its subnet, and a group of others that refers to its group."""

    def __init__(self, region: Emulated) -> None:
        self.cluster, self.region, ec2 = region.name(), region, region.ec2
        self.mine = Maker(region, tags(self.cluster))
        self.vpc, self.subnet = self.mine.network()
        self.mine.rest(self.subnet)
        self.mine.key_pair()
        self.group = sorted(self.mine.made["security group"])[0]
        other = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        self.theirs = ec2.create_security_group(GroupName=region.name(), Description="of the lab", VpcId=other)[
            "GroupId"
        ]

    def look(self) -> list[tagged.TaggedResource]:
        return tagged.find(HOME, "ann", self.cluster)

    def mount(self) -> str:
        asked = {"SubnetId": self.subnet, "Description": MOUNT, "Groups": [self.group]}
        return str(self.region.ec2.create_network_interface(**asked)["NetworkInterface"]["NetworkInterfaceId"])

    def refer(self) -> None:
        pair = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": self.group}]}]
        self.region.ec2.authorize_security_group_ingress(GroupId=self.theirs, IpPermissions=pair)


@pytest.fixture
def lab(emulated_region: Emulated) -> Lab:
    return Lab(emulated_region)


def test_what_is_ours_is_in_nobodys_way(lab: Lab) -> None:
    lab.mine.instance(SubnetId=lab.subnet, SecurityGroupIds=[lab.group])
    assert strangers.find(lab.look()) == []


def test_what_others_hold_is_named_and_the_rest_goes(lab: Lab) -> None:
    card, waits, said = lab.mount(), [], []
    lab.refer()
    _, errors = end_tagged.sweep(lab.look, said.append, waits.append)
    assert len(waits) <= 2, "it is not asked again and again"
    by_id = {line.split()[2]: line for line in errors}
    assert set(by_id) == {card, lab.theirs}
    assert repr(MOUNT) in by_id[card] and "made by" in by_id[card] and "account 123456789012" in by_id[card]
    assert all(held in by_id[card] for held in (lab.vpc, lab.subnet, lab.group))
    assert "of the lab" in by_id[lab.theirs] and lab.group in by_id[lab.theirs]
    assert [line for line in said if line.startswith("in the way: ")] == [f"in the way: {line}" for line in errors]
    assert {t.id for t in lab.look() if t.alive} == {lab.vpc, lab.subnet, lab.group}
    there = lab.region.ids()
    assert {card, lab.theirs} <= there

    lab.region.ec2.delete_network_interface(NetworkInterfaceId=card)
    lab.region.ec2.delete_security_group(GroupId=lab.theirs)
    assert end_tagged.sweep(lab.look, said.append, waits.append)[1] == []


@pytest.mark.parametrize("kind", ["security group", "subnet", "route table", "instance"])
def test_every_kind_that_holds_something(lab: Lab, kind: str) -> None:
    ec2, name = lab.region.ec2, lab.region.name()
    make: dict[str, Callable[[], str]] = {
        "security group": lambda: ec2.create_security_group(GroupName=name, Description="x", VpcId=lab.vpc)["GroupId"],
        "subnet": lambda: ec2.create_subnet(VpcId=lab.vpc, CidrBlock="10.77.9.0/24")["Subnet"]["SubnetId"],
        "route table": lambda: ec2.create_route_table(VpcId=lab.vpc)["RouteTable"]["RouteTableId"],
        "instance": lambda: Maker(lab.region, {"nexa:owner": "bob", "nexa:cluster": "b"}).instance(SubnetId=lab.subnet),
    }
    made = make[kind]()
    found = strangers.find(lab.look())
    if kind == "instance":  # in a network it shows by its interface
        (seen,) = [s for s in found if s.kind == "network interface"]
        assert "nexa:owner 'bob'" in seen.by
        return
    (seen,) = found
    assert (seen.id, seen.kind) == (made, kind) and lab.vpc in seen.holds


class Destroys:
    """Terraform that waits for what is in the way, as the real one does."""

    def __init__(self, chdir: Any, began: Callable[[], object] = lambda: None) -> None:
        self.chdir, self.began, self.limits = chdir, began, []

    def settle(self, *_: object, **__: object) -> None: ...

    def resources(self) -> list[str]:
        return ["aws_subnet.x"]

    def destroy(self, on_progress: Callable[[str], None], timeout_s: float) -> None:
        self.limits.append(timeout_s)
        self.began()
        for second in range(10, 400, 10):
            on_progress(f"aws_subnet.x: Still destroying... [{second}s elapsed]")
        raise AssertionError("nobody looked")


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.long("another moment")), "meanwhile"])
def test_terraform_does_not_wait_for_a_stranger(
    lab: Lab, desk: Desk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It said "Still destroying" for more than six minutes, and the interface was named nowhere."""
    folder, mine = desk.ctx.workspace.cluster(lab.cluster), scope(lab.cluster, account=identity(HOME).account)
    files.write_json(scope_file(folder), mine.to_json())
    made: list[str] = [lab.mount()] if when == "before" else []
    terraform = Destroys(folder.path, lambda: made or made.append(lab.mount()))
    monkeypatch.setattr(aws_end, "terraform_of", lambda *_: terraform)
    monkeypatch.setattr(aws_end, "LOOK_EVERY_S", 0.0)
    monkeypatch.setenv("NEXA_SETTLE_S", "0")
    ctx = replace(desk.ctx, sleep=lambda _: time.sleep(0.01))
    with pytest.raises(StillRunning, match=MOUNT.partition(" (")[0]) as caught:
        teardown(ctx, folder, known_scope(folder), stop)
    assert caught.value.code == 4 and "not ours to end" in caught.value.hint and made[0] in str(caught.value)
    receipt = files.read_json(folder.path / "receipt.json")
    (way,) = receipt["in_the_way"]
    assert (way["id"], way["what"]) == (made[0], MOUNT) and lab.subnet in way["holds"]
    assert {row["id"] for row in receipt["left"]["cloud"]} == {lab.vpc, lab.subnet, lab.group} | lab.mine.made[
        "key pair"
    ]
    assert terraform.limits == ([] if when == "before" else [pytest.approx(aws_end.DESTROY_LIMIT_S, abs=60)])
    lab.region.ec2.delete_network_interface(NetworkInterfaceId=made[0])
    monkeypatch.setattr(aws_end, "terraform_of", lambda *_: SimpleNamespace(chdir=folder.path / "none"))
    assert teardown(ctx, folder, known_scope(folder), stop)["left"] == {"cloud": [], "errors": []}
