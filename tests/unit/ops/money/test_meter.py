"""The budget while a run goes on: warnings, the nodes' own clocks, and the stop; its extension; new nodes' hours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nexa_dist.errors import EXIT_BUDGET, NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.money import budget, lease, meter
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.money.meter import Meter
from nexa_dist.ops.money.record_usage import Reading
from nexa_dist.plan.money.bill import bill
from nexa_dist.plan.money.budget import ALONE_S, GUARD
from nexa_dist.run import files
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.periodic import PeriodicTask
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import ClusterFolder, RunFolder
from tests.unit import records
from tests.unit.cloud_server import Desk

NODES = (Node("n0", "198.51.100.1", 1, price_usd_per_hour=6.0), Node("n1", "198.51.100.2", 1, price_usd_per_hour=6.0))
HOUR = 3600.0


@pytest.fixture
def folder(desk: Desk) -> ClusterFolder:
    """Two nodes at 6 USD/h that begin now, a budget of 24 USD, four hours at most."""
    made = desk.ctx.workspace.cluster("c")
    made.path.mkdir(parents=True)
    config = {"name": "c", "provider": "aws", "max_hours": 4, "budget_usd": 24.0, "lease_minutes": 10}
    files.write_json(made.path / "config.json", config)
    budget.open_budget(made, 24.0, desk.now())
    for node in NODES:
        made.ledger("node_start", at=desk.now(), node=node.name, id=node.name, offer="g zone spot", usd_per_hour=6.0)
    return made


def cluster(desk: Desk) -> Cluster:
    return Cluster("c", "aws", NODES, Layout("p", "s", "s", "d"), created_unix=desk.now())


class Told:
    """What the nodes were told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.due: list[float] = []
        self.max_s: list[float | None] = []
        self.renewed = 0
        self.silent: dict[str, str] = {}
        patch.setattr(lease, "rearm", self.rearm)
        patch.setattr(lease, "renew", self.renew)
        patch.setattr(usage, "refresh", lambda *_: Reading([], 0.0, ahead_s=0.0))

    def rearm(self, links: Any, due_unix: float, max_s: float | None = None) -> dict[str, int]:
        self.due.append(due_unix)
        self.max_s.append(max_s)
        return {}

    def renew(self, links: Any) -> lease.Signs:
        self.renewed += 1
        return lease.Signs({}, self.silent)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


@pytest.fixture
def counted(desk: Desk, folder: ClusterFolder, told: Told) -> Iterator[tuple[Meter, list[str]]]:
    said: list[str] = []
    made = Meter(desk.ctx, cluster(desk), None, desk.now(), said.append)
    made.links = ("a link",)  # type: ignore[assignment]
    yield made, said
    made.close()


def test_the_logs_that_came_here_are_counted(desk: Desk, folder: ClusterFolder, told: Told) -> None:
    run = RunFolder(desk.ctx.workspace.root / "runs" / "train_1")
    made = Meter(desk.ctx, replace(cluster(desk), region="us-east-1"), None, desk.now(), print, run)

    def counted() -> float:
        return bill(files.read_lines(folder.path / "ledger.jsonl"), desk.now()).egress_usd

    def grow(size: int) -> None:
        log = run.logs / "n0" / "rank_0" / "attempt_1.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"x" * size)
        desk.slept.append(100.0)
        made.round()

    grow(3_000_000)
    assert counted() == pytest.approx(0.003 * 0.09)
    grow(3_500_000)
    assert counted() == pytest.approx(0.003 * 0.09), "not a line for each byte"
    made.close()
    assert counted() == pytest.approx(0.0035 * 0.09)


def test_it_warns_once_a_share_and_stops_before_the_end(
    desk: Desk, counted: tuple[Meter, list[str]], told: Told
) -> None:
    made, said = counted
    warned: list[float] = []
    made.warned = lambda budget, share, words: warned.append(share)
    seen: list[tuple[float, str]] = []
    while not (why := made.look()) and desk.now() < 10**10:
        made.round()
        seen.append((desk.now(), why))
        desk.slept.append(30.0)
    spent = (desk.now() - seen[0][0]) / HOUR * 12
    assert 23.0 < spent < 24.0 and why == f"budget of the cluster: {spent:.2f} of 24.00 USD are spent"
    assert [line.split("(")[1][:3] for line in said] == ["50%", "80%", "95%"]
    assert warned == [0.5, 0.8, 0.95]
    assert told.renewed > 100  # each minute of a lease of ten
    assert min(due - at for due, (at, _) in zip(told.due, seen[:: len(seen) // len(told.due)], strict=False)) > 0
    assert set(told.max_s) == {4 * HOUR} and max(told.due) <= seen[0][0] + 4 * HOUR


def test_a_budget_of_the_run_counts_from_its_start(desk: Desk, folder: ClusterFolder, told: Told) -> None:
    made = Meter(desk.ctx, cluster(desk), 3.0, desk.now(), lambda _: None)
    desk.slept.append(600.0)
    assert made.look() == ""
    desk.slept.append(150.0)
    assert made.look().startswith("budget of the run: 2.50 of 3.00 USD")
    made.close()


class Agent:
    """A link whose agent writes down what it is told."""

    def __init__(self, node: Node) -> None:
        self.node, self.told = node, list[tuple[str, str, float]]()

    def call(self, verb: str, folder: str, *, message: dict[str, float], timeout_s: float) -> dict[str, bool]:
        self.told.append((verb, folder, message["seconds"]))
        return {"ok": True}


@pytest.mark.parametrize(("provider", "share"), [("aws", 1 / GUARD), ("static", 1.0)])
def test_the_agents_of_a_run_know_how_long_its_money_lasts(
    desk: Desk, folder: ClusterFolder, told: Told, provider: str, share: float
) -> None:
    run = RunFolder(desk.ctx.workspace.root / "runs" / "train_1")
    records.put(run, {"run_id": "train_1", "cluster": cluster(desk).to_json(), "config": {}, "attempts": [],
              "nodes": {node.name: {"run_dir": f"/s/{node.name}"} for node in NODES}})  # fmt: skip
    made = Meter(desk.ctx, replace(cluster(desk), provider=provider), 3.0, desk.now(), print, run)
    agents = [Agent(node) for node in NODES]
    made.links = agents  # type: ignore[assignment]
    made.allow()
    assert [a.told for a in agents] == [[("allow", f"/s/n{i}", pytest.approx(900 * share - ALONE_S))] for i in (0, 1)]
    desk.slept.append(600.0)  # of the 900 s that 3 USD last; a living controller stops it at 180 s
    made.round()
    assert agents[0].told[1:] == [("allow", "/s/n0", pytest.approx(300 * share - ALONE_S))]
    made.close()


def test_without_a_budget_only_the_lease_is_tended(desk: Desk, folder: ClusterFolder, told: Told) -> None:
    (folder.path / "ledger.jsonl").unlink()
    files.write_json(folder.path / "config.json", {"name": "c", "provider": "aws", "max_hours": 4})
    made = Meter(desk.ctx, cluster(desk), None, desk.now(), lambda _: None)
    made.links = ("a link",)  # type: ignore[assignment]
    assert made.look() == "" and made.budgets() == []
    made.round()
    assert (told.renewed, told.due) == (1, [])
    made.close()


def test_a_lease_that_cannot_be_renewed_is_said_at_the_third_time(counted: tuple[Meter, list[str]], told: Told) -> None:
    made, _ = counted
    told.silent = {"n1": "no route"}
    assert [bool(made.round()) for _ in range(4)] == [False, False, True, False]


def test_what_the_thread_has_to_say_is_said_once_by_the_one_who_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    def refuse() -> str:
        rounds.append(1)
        raise NexaError("n1: no sudo")

    task = PeriodicTask(refuse, 0.001)
    task.start()
    end = time.monotonic() + 90
    while len(rounds) < 5 and time.monotonic() < end:
        time.sleep(0.001)
    task.close()
    assert list(task.said) == ["warning: the nodes' own clocks were not set: n1: no sudo"]


def test_a_run_that_money_would_end_at_once_or_never_is_refused(desk: Desk, folder: ClusterFolder) -> None:
    meter.refuse_a_run(desk.ctx, cluster(desk), 2.0)
    with pytest.raises(NexaError, match="needed to stop in order") as caught:
        meter.refuse_a_run(desk.ctx, cluster(desk), 0.5)
    assert caught.value.code == EXIT_BUDGET
    free = replace(cluster(desk), nodes=(Node("n0", "198.51.100.1", 1),))
    with pytest.raises(UsageError, match="whose nodes have no price"):
        meter.refuse_a_run(desk.ctx, free, 2.0)


def test_new_nodes_live_as_long_as_the_money_does(desk: Desk, folder: ClusterFolder) -> None:
    first_minute = 1 / 60  # is billed whole
    assert budget.hours_allowed(folder, desk.now(), 12.0, 24.0) == pytest.approx((2 - first_minute) / GUARD)
    assert budget.hours_allowed(folder, desk.now() + HOUR, 12.0, 24.0) == pytest.approx(1 / GUARD)
    with pytest.raises(NexaError, match=r"used up before the nodes have booted.*23\.00 of 24\.00") as caught:
        budget.hours_allowed(folder, desk.now() + HOUR * 23 / 12, 12.0, 24.0)
    assert caught.value.code == EXIT_BUDGET
    empty = desk.ctx.workspace.cluster("none")
    assert budget.hours_allowed(empty, desk.now(), 12.0, None) == float("inf")


def test_an_extension_stays_when_the_file_is_provisioned_again(desk: Desk, folder: ClusterFolder, told: Told) -> None:
    files.write_json(folder.json, cluster(desk).to_json())
    desk.slept.append(HOUR)
    meter.extend(desk.ctx, folder, 12.0)
    desk.slept.append(1.0)
    budget.open_budget(folder, 24.0, desk.now())
    found = budget.of_cluster(folder, desk.now(), 0.0)
    assert found and found.budget_usd == 36.0
    assert told.due == [pytest.approx(desk.now() + 2 * HOUR / GUARD)]
    budget.open_budget(folder, 30.0, desk.now() + 1)  # another value of the file is another decision
    assert replace(found, budget_usd=30.0) == budget.of_cluster(folder, desk.now(), 0.0)


def test_an_extension_reaches_the_agents_of_a_run_that_nobody_follows(
    desk: Desk, folder: ClusterFolder, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_json(folder.json, cluster(desk).to_json())
    run = RunFolder(desk.ctx.workspace.root / "runs" / "train_1")
    attempt = {"attempt": 1, "state": "running", "started_unix": desk.now(), "world_size": 2, "rdzv": "x:1",
               "ranks": {"n0": [0, 0], "n1": [1, 1]}, "resume_step": None}  # fmt: skip
    records.put(run, {"run_id": "train_1", "cluster": cluster(desk).to_json(), "attempts": [attempt],
              "config": {"name": "t", "script": "t.py"},
              "nodes": {"n0": {"run_dir": "/s/n0"}, "n1": {"run_dir": "/s/n1"}}})  # fmt: skip
    agent = Agent(NODES[0])
    monkeypatch.setattr(meter, "reach", lambda ssh, nodes: ([agent], {"n1": "no route"}))
    meter.extend(desk.ctx, folder, 12.0)
    assert agent.told == [("allow", "/s/n0", pytest.approx(3 * HOUR / GUARD - ALONE_S, abs=120))]
    assert any("n1 ends train_1 when the old budget says so: no route" in line for line in desk.said)


def test_what_has_no_budget_cannot_be_extended(desk: Desk, folder: ClusterFolder) -> None:
    (folder.path / "ledger.jsonl").unlink()
    with pytest.raises(UsageError, match="has no budget"):
        meter.extend(desk.ctx, folder, 5.0)


def test_a_run_on_a_part_counts_its_nodes_alone_and_keeps_the_lease_of_all(
    desk: Desk, folder: ClusterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_json(folder.json, cluster(desk).to_json())
    part = replace(cluster(desk), nodes=NODES[:1])
    made = Meter(desk.ctx, part, 10.0, desk.now(), lambda text: None)
    made.links = [Link(Ssh(FakeRunner(), part, "/nonexistent"), NODES[0], "/home")]
    renewed, moved = list[list[str]](), list[list[str]]()

    def renew(links: Any) -> lease.Signs:
        renewed.append([link.node.name for link in links])
        return lease.Signs({}, {"n1": "off"} if links[0].node.name == "n1" else {})

    def rearm(links: Any, *_: Any) -> dict[str, int]:
        moved.append([link.node.name for link in links])
        return {}

    monkeypatch.setattr(lease, "renew", renew)
    monkeypatch.setattr(lease, "rearm", rearm)
    monkeypatch.setattr(usage, "refresh", lambda *_: Reading([], 0.0, ahead_s=0.0))
    assert [made.round() for _ in range(meter.UNHEARD)] == [""] * meter.UNHEARD  # a node that is not used may be off
    assert renewed == [["n0"], ["n1"]] * meter.UNHEARD and moved == [["n0"], ["n1"]]
    desk.slept.append(HOUR)
    of_cluster, of_run = made.budgets()
    assert (of_cluster.spent_usd, of_cluster.usd_per_hour) == (12.0, 12.0)
    assert (of_run.spent_usd, of_run.usd_per_hour) == (6.0, 6.0)
