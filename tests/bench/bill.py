"""The ledger against the emulated region's own bill: `python -m tests.bench.bill` prints the table.

Hours pass in no time: the region's clock is moved, the controller's with it (or not, where that is the point).
"""

from __future__ import annotations

import contextlib
import http.server
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import struct_time
from typing import Any

import pytest

from nexa_dist.ops.context import Context
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.providers.scope_file import scope_file
from nexa_dist.plan.money.bill import Bill
from nexa_dist.run import files
from nexa_dist.run.aws import tagged
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import ClusterFolder, Workspace
from tests.unit.cloud_server import Emulated, emulated, scope

TYPE = "g5.xlarge"
MINUTE, HOUR = 60.0, 3600.0
AGREES = 0.02
LIVES_S = 6 * HOUR
"""Until the nodes' own deadline."""


class Clock:
    """The module `time` with another idea of now. It goes while this process has a CPU, so that a busy machine is not
    billed for."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.began_unix = time.time() - time.process_time()

    def time(self) -> float:
        return self.began_unix + time.process_time() + self.ahead_s

    def gmtime(self, unix: float | None = None) -> struct_time:
        return time.gmtime(self.time() if unix is None else unix)

    def utcnow(self) -> datetime:
        return datetime.fromtimestamp(self.time(), UTC).replace(tzinfo=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextlib.contextmanager
def simulated_region() -> Iterator[tuple[Emulated, Clock]]:
    """The region with a clock that can be moved. It shows dead instances for an hour, as AWS does."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.server, "time", clock)
        for module in ("moto_life", "moto_prices"):
            patch.setattr(f"tests.cloud.{module}.time", clock)
        for module in ("moto.ec2.models.instances", "tests.cloud.moto_spot"):
            patch.setattr(f"{module}.utcnow", clock.utcnow)
        for region in emulated(forget_s=HOUR):
            yield region, clock


@dataclass
class Play:
    """One cluster in the region, and the controller's ledger of it."""

    region: Emulated
    clock: Clock
    root: Path
    name: str
    controller_ahead_s: float = 0.0
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = ClusterFolder(self.root / ".nexa" / "clusters" / self.name)
        self.scope = scope(self.name, owner="bill", expires_unix=int(self.clock.time() + LIVES_S))
        files.write_json(scope_file(self.folder), self.scope.to_json())

    @property
    def ctx(self) -> Context:
        told: list[str] = []
        return Context(Workspace(self.root), Runner(), told.append, now=self.now)

    def now(self) -> float:
        return self.clock.time() + self.controller_ahead_s

    def pass_s(self, seconds: float) -> None:
        self.clock.ahead_s += seconds

    def on(self, *nodes: str, zone: str = "us-east-1a", market: str = "spot") -> None:
        """Nodes that start."""
        for node in nodes:
            tags = {**self.scope.tags, tagged.NODE: node}
            rows = [{"Key": key, "Value": value} for key, value in tags.items()]
            spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}
            made = self.region.ec2.run_instances(
                ImageId=self.region.image, InstanceType=TYPE, MinCount=1, MaxCount=1,
                Placement={"AvailabilityZone": zone}, TagSpecifications=[{"ResourceType": "instance", "Tags": rows}],
                InstanceInitiatedShutdownBehavior="terminate", **spot,
            )  # fmt: skip
            self.ids[node] = made["Instances"][0]["InstanceId"]

    def off(self, *nodes: str) -> None:
        self.region.ec2.terminate_instances(InstanceIds=[self.ids[node] for node in nodes])

    def reclaim(self, node: str) -> None:
        self.region.control.reclaim(self.ids[node])

    def price(self, usd: float, zone: str = "us-east-1a") -> None:
        self.region.control.price(TYPE, zone, usd)

    def look(self) -> Bill:
        """What the controller knows once it has asked."""
        return usage.refresh(self.ctx, self.folder).bill

    def truth_usd(self) -> float:
        """The region's own bill of this cluster."""
        rows = self.region.control.bill()["instances"]
        return float(sum(row["usd"] for row in rows if row["tags"].get(tagged.CLUSTER) == self.name))


Scenario = Callable[[Play], None]


def two_spot_nodes(play: Play) -> None:
    play.on("n0", "n1")
    play.pass_s(2 * HOUR)
    play.off("n0", "n1")


def four_on_demand(play: Play) -> None:
    play.on("n0", "n1", "n2", "n3", market="on_demand")
    play.pass_s(90 * MINUTE)
    play.off("n0", "n1", "n2", "n3")


def lives_for_20_seconds(play: Play) -> None:
    play.on("n0")
    play.pass_s(20)
    play.off("n0")


def still_running(play: Play) -> None:
    play.on("n0", "n1")
    play.pass_s(47 * MINUTE)


def prices_rise_and_fall(play: Play) -> None:
    play.on("n0", "n1")
    for usd in (0.45, 1.4, 0.2, 0.9):
        play.pass_s(50 * MINUTE)
        play.price(usd)
    play.pass_s(50 * MINUTE)
    play.off("n0", "n1")


def price_a_thousand_times_as_high(play: Play) -> None:
    play.on("n0")
    play.pass_s(3 * HOUR)
    play.price(352.0)
    play.pass_s(90)
    play.off("n0")


def preempted_and_replaced(play: Play) -> None:
    play.on("n0", "n1")
    play.pass_s(40 * MINUTE)
    play.look()
    play.reclaim("n1")
    play.pass_s(3 * MINUTE)
    play.on("n1")
    play.look()  # as provision does
    play.pass_s(70 * MINUTE)
    play.off("n0", "n1")


def replaced_in_another_zone(play: Play) -> None:
    play.on("n0", "n1")
    play.pass_s(20 * MINUTE)
    play.price(2.5)
    play.reclaim("n0")
    play.off("n1")
    play.on("n0", "n1", zone="us-east-1b")
    play.look()
    play.pass_s(2 * HOUR)
    play.price(0.3, "us-east-1b")
    play.pass_s(HOUR)
    play.off("n0", "n1")


def a_gang_that_failed(play: Play) -> None:
    play.on("n0", "n1", "n2")
    play.pass_s(25)
    play.off("n0", "n1", "n2")
    play.on("n0", "n1", "n2", "n3", zone="us-east-1c")
    play.pass_s(35 * MINUTE)
    play.off("n0", "n1", "n2", "n3")


def nobody_home(play: Play) -> None:
    """The controller dies; the price moves, one node is taken, the other ends by its own deadline."""
    play.on("n0", "n1")
    play.pass_s(10 * MINUTE)
    play.look()
    play.pass_s(80 * MINUTE)
    play.price(0.7)
    play.pass_s(30 * MINUTE)
    play.reclaim("n0")
    play.pass_s(15 * MINUTE)
    play.off("n1")
    play.pass_s(35 * MINUTE)


def controller_an_hour_ahead(play: Play) -> None:
    play.controller_ahead_s = HOUR
    play.on("n0", "n1")
    play.pass_s(30 * MINUTE)
    play.look()
    play.pass_s(30 * MINUTE)


def controllers_clock_jumps(play: Play) -> None:
    play.on("n0", "n1")
    for jump in (-2 * HOUR, 5 * HOUR, -26 * HOUR, 0.0):
        play.pass_s(20 * MINUTE)
        play.controller_ahead_s = jump
        play.look()
    play.off("n1")
    play.pass_s(20 * MINUTE)


def a_torn_ledger(play: Play) -> None:
    """The controller was killed in the midst of a line, and two others look at once."""
    play.on("n0", "n1")
    play.pass_s(30 * MINUTE)
    play.look()
    ledger = play.folder.path / "ledger.jsonl"
    kept = ledger.read_bytes()
    ledger.write_bytes(kept[: len(kept) * 2 // 3])
    play.look()
    with ledger.open("ab") as file:
        file.write(kept)
    play.reclaim("n0")
    play.pass_s(30 * MINUTE)
    play.off("n1")


def over_midnight_for_a_day(play: Play) -> None:
    play.on("n0", "n1", "n2", "n3")
    play.on("n4", "n5", "n6", "n7", market="on_demand")
    for hour in range(26):
        play.pass_s(HOUR)
        play.price(0.2 + hour % 5 * 0.1)
        if hour % 8 == 7:
            play.look()
    play.off(*play.ids)


def a_day_of_chance(play: Play, seed: int = 5) -> None:
    """Starts, ends, preemptions and prices at random, and a controller that looks every half hour or so."""
    dice = random.Random(seed)
    living: set[str] = set()
    for number in range(120):
        play.pass_s(dice.uniform(5, 20 * MINUTE))
        deed = dice.choice(("on", "on", "off", "reclaim", "price", "look"))
        if deed == "on" and len(living) < 6:
            play.on(f"n{number}", zone=dice.choice(("us-east-1a", "us-east-1b")))
            living.add(f"n{number}")
        elif deed in ("off", "reclaim") and living:
            node = dice.choice(sorted(living))
            living.discard(node)
            play.off(node) if deed == "off" else play.reclaim(node)
        elif deed == "price":
            play.price(round(dice.uniform(0.2, 3.0), 4), dice.choice(("us-east-1a", "us-east-1b")))
        else:
            play.controller_ahead_s = dice.uniform(-HOUR, HOUR)
            play.look()
        if number % 3 == 0:
            play.look()


SCENARIOS: tuple[Scenario, ...] = (
    two_spot_nodes, four_on_demand, lives_for_20_seconds, still_running, prices_rise_and_fall,
    price_a_thousand_times_as_high, preempted_and_replaced, replaced_in_another_zone, a_gang_that_failed, nobody_home,
    controller_an_hour_ahead, controllers_clock_jumps, a_torn_ledger, over_midnight_for_a_day, a_day_of_chance,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What both say."""

    scenario: str
    starts: int
    truth_usd: float
    made: Bill

    @property
    def off(self) -> float:
        """How far the ledger is off, as a share of the truth."""
        return (self.made.instances_usd - self.truth_usd) / self.truth_usd


def forgotten(play: Play) -> None:
    """Nobody looked for longer than the cloud shows dead instances: the end is not known, only that of the deadline."""
    play.on("n0")
    play.look()
    play.pass_s(20 * MINUTE)
    play.off("n0")
    play.pass_s(5)
    play.region.ec2.describe_regions()  # any call moves the states whose time has come
    play.pass_s(9 * HOUR)


def compare(region: Emulated, clock: Clock, root: Path, scenario: Scenario) -> Outcome:
    """Plays one scenario and holds both bills side by side."""
    play = Play(region, clock, root, region.name())
    for zone, usd in (("us-east-1a", 0.352), ("us-east-1b", 0.3626)):  # whatever the last scenario left
        play.price(usd, zone)
    play.pass_s(2)
    scenario(play)
    made = play.look()
    return Outcome(scenario.__name__.replace("_", " "), len(made.nodes), play.truth_usd(), made)


def main() -> int:
    """The table in Markdown; 1 when a scenario is off by more than it may be."""
    print("| scenario | starts | region USD | ledger USD | off |\n| --- | ---: | ---: | ---: | ---: |")
    worst = 0.0
    with tempfile.TemporaryDirectory() as root, simulated_region() as (region, clock):
        for scenario in SCENARIOS:
            found = compare(region, clock, Path(root), scenario)
            worst = max(worst, abs(found.off))
            print(
                f"| {found.scenario} | {found.starts} | {found.truth_usd:.4f} | {found.made.instances_usd:.4f} "
                f"| {found.off:+.2%} |"
            )
    print(f"\n{len(SCENARIOS)} scenarios, at most {worst:.2%} off; {AGREES:.0%} are allowed.")
    return 0 if worst <= AGREES else 1


if __name__ == "__main__":
    sys.exit(main())
