"""The ledger agrees with the bill of the region itself, and asking twice changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.cluster import provision as provisioning
from nexa_dist.ops.cluster import teardown as destroying
from nexa_dist.ops.money import cost as costing
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.providers.aws import end as aws_end
from nexa_dist.ops.providers.aws import record_usage as aws_record_usage
from nexa_dist.ops.runs.stop import stop
from nexa_dist.plan.money.bill import bill
from nexa_dist.run import files
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import instance_usage, tagged
from tests.bench.bill import (
    AGREES,
    LIVES_S,
    MINUTE,
    SCENARIOS,
    Clock,
    Play,
    Scenario,
    a_day_of_chance,
    compare,
    forgotten,
    simulated_region,
)
from tests.unit.cloud_server import Emulated


@pytest.fixture(scope="module")
def simulated() -> Iterator[tuple[Emulated, Clock]]:
    with simulated_region() as made:
        yield made


@pytest.fixture
def play(simulated: tuple[Emulated, Clock], tmp_path: Path) -> Play:
    region, clock = simulated
    play = Play(region, clock, tmp_path, region.name())
    play.price(0.36)
    play.pass_s(2)  # the cloud tells whole seconds: a launch in this one would be before the move
    return play


def events(play: Play, kind: str) -> list[dict[str, Any]]:
    return [event for event in usage.read(play.folder.path) if event["event"] == kind]


LONG = pytest.mark.long("a seed")


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(each, marks=[LONG] if each is a_day_of_chance else [], id=each.__name__) for each in SCENARIOS],
)
def test_the_ledger_agrees_with_the_bill(simulated: tuple[Emulated, Clock], tmp_path: Path, scenario: Scenario) -> None:
    found = compare(*simulated, tmp_path, scenario)
    assert abs(found.off) <= AGREES, (found.truth_usd, found.made.to_json())
    assert found.made.unpriced == ()
    assert sum(share.usd for share in found.made.phases.values()) == pytest.approx(found.made.usd)


def test_an_end_that_nobody_saw_is_that_of_the_deadline_at_the_latest(play: Play) -> None:
    forgotten(play)
    made = play.look()
    assert play.truth_usd() == pytest.approx(0.12, rel=0.01)
    assert 0.12 < made.instances_usd <= 0.36 * (LIVES_S + 2 * MINUTE) / 3600
    assert events(play, "node_stop")[0]["source"] == "clock"


def test_asking_again_adds_nothing(play: Play) -> None:
    play.on("n0", "n1")
    play.pass_s(10)
    play.off("n0")
    play.look()
    before = usage.read(play.folder.path)
    kinds = [event["event"] for event in before]
    assert kinds == ["price", "node_start", "node_start", "node_stop", "seen"]
    play.look()
    assert usage.read(play.folder.path) == before


def test_a_start_holds_what_is_to_be_known_of_it(play: Play) -> None:
    files.write_json(play.folder.path / "config.json", {"provider": "aws", "volume_gb": 730})
    play.on("n0")
    play.pass_s(3600)
    made = play.look()
    (start,) = events(play, "node_start")
    assert start["offer"] == "g5.xlarge us-east-1a spot"
    assert (start["usd_per_hour"], start["disk_gb"], start["public_ip"], start["source"]) == (0.36, 730, True, "cloud")
    assert made.disks_usd == pytest.approx(0.08, rel=0.01)
    assert made.addresses_usd == pytest.approx(0.005, rel=0.01)
    assert made.usd_per_hour == pytest.approx(0.36 + 0.08 + 0.005)


def test_what_is_of_others_is_not_counted(play: Play) -> None:
    """Another workspace's instance, and one of an earlier cluster of the same name that the cloud still shows."""
    play.on("n0", "n1")
    play.region.ec2.create_tags(Resources=[play.ids["n0"]], Tags=[{"Key": tagged.WORKSPACE, "Value": "eve@x/9"}])
    old = {"at": play.now(), "event": "node_start", "id": play.ids["n1"], "node": "n1"}
    files.append_json(play.root / ".nexa" / "history" / f"{play.name}_2026-11-22T000000Z" / "ledger.jsonl", old)
    assert play.look().nodes == ()


def test_the_end_of_a_spot_request_is_that_of_its_instance(play: Play) -> None:
    play.on("n0")
    play.pass_s(600)
    play.reclaim("n0")
    play.pass_s(5)
    things, _ = tagged.machines("us-east-1", play.scope.owner, play.name)
    things[0].row.pop("StateTransitionReason")
    (machine,) = instance_usage.machines(things)
    assert machine.stop_unix == pytest.approx(machine.start_unix + 600, abs=3)
    play.on("n1")
    request = str(
        play.region.ec2.describe_instances(InstanceIds=[play.ids["n1"]])["Reservations"][0]["Instances"][0][
            "SpotInstanceRequestId"
        ]
    )
    assert aws_client.Cloud("us-east-1").spot_ends([request]) == {}, "it lives"


def test_phases_of_a_node_on_its_way(play: Play) -> None:
    play.on("n0")
    play.pass_s(60)
    reading = usage.refresh(play.ctx, play.folder)
    usage.advance(play.ctx, play.folder, "booting")
    usage.advance(play.ctx, play.folder, "bootstrapping", reading.ahead_s)
    play.pass_s(120)
    usage.advance(play.ctx, play.folder, "idle")
    usage.advance(play.ctx, play.folder, "bootstrapping")
    play.pass_s(30)
    phases = {name: share.seconds for name, share in play.look().phases.items() if share.seconds}
    assert phases == pytest.approx({"booting": 60, "bootstrapping": 120, "idle": 30}, abs=3)


def test_at_the_end_nothing_is_on(play: Play) -> None:
    play.on("n0")
    play.pass_s(600)
    play.look()
    aws_record_usage.record(play.ctx, play.folder, play.scope, [], play.now(), final=True)
    made = bill(usage.read(play.folder.path), play.now() + 9e4)
    assert made.usd_per_hour == 0
    assert made.seconds == pytest.approx(600, abs=3)


def test_the_receipt_of_a_teardown_says_what_it_cost_and_the_history_keeps_it(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXA_SETTLE_S", "0")
    monkeypatch.setattr(aws_end, "terraform_of", lambda *_: FakeState(play.folder.terraform))
    account = aws_client.identity("us-east-1").account
    play.on("n0", "n1")
    play.pass_s(3600)
    play.reclaim("n1")
    receipt = destroying.teardown(play.ctx, play.folder, dataclasses.replace(play.scope, account=account), stop)
    assert receipt["left"] == {"cloud": [], "errors": []}
    assert receipt["cost"]["instances_usd"] == pytest.approx(play.truth_usd(), rel=AGREES)
    assert receipt["cost"]["usd_per_hour"] == 0
    assert receipt["cost_usd"] == pytest.approx(
        receipt["cost"]["instances_usd"] + receipt["cost"]["disks_usd"], rel=0.02
    )
    assert {row["node"]: row["stop_unix"] is None for row in receipt["cost"]["nodes"]} == {"n0": False, "n1": False}
    assert receipt["waste"]["on_demand_usd"] > receipt["cost_usd"]
    assert receipt["waste"]["lines"][0].endswith("0% of them for training (0.00 USD)")
    play.pass_s(9e4)
    kept, _ = costing.find(play.ctx, play.name)
    told = costing.report(play.ctx, kept)
    assert told["usd"] == pytest.approx(receipt["cost_usd"])
    assert told["egress_usd_per_gb"] == 0.09


def test_what_a_failed_provision_has_cost_is_written_down(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gang was made, did not boot, and was given back."""

    def make(*_: Any) -> None:
        play.on("n0", "n1")
        play.pass_s(300)
        play.off("n0", "n1")
        raise NexaError("n0 did not answer")

    monkeypatch.setattr("nexa_dist.ops.providers.aws.provider.make", make)
    told = {"name": play.name, "provider": "aws", "nodes": 2, "gpus_per_node": 1, "max_hours": 6.0}
    with pytest.raises(NexaError, match="did not answer"):
        provisioning.provision(play.ctx, ClusterConfig.model_validate(told))
    made = usage.known(play.ctx, play.folder).bill
    assert made.instances_usd == pytest.approx(play.truth_usd(), rel=AGREES)
    assert len(made.nodes) == 2
    assert made.usd_per_hour == 0


@dataclasses.dataclass
class FakeState:
    """A Terraform that has made nothing."""

    chdir: Path
