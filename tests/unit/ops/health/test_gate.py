"""The newest diagnosis on disk, the gate before a run, and who gets another machine."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.health import acceptance, diag, gate
from nexa_dist.ops.health.diag import Report
from nexa_dist.ops.health.group_test import STAGES, blamed, interface
from nexa_dist.plan.health.fault import ALL, Cause, Fault
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder, Workspace

NODES = tuple(Node(f"n{i}", f"10.0.0.{i}", 1, instance_id=f"i-{i}", price_usd_per_hour=60.0) for i in range(3))
CLUSTER = Cluster("c", "aws", NODES, Layout("py", "/s", "/h", "/d"))
FACTS: dict[str, Any] = {"error": "not asked in these tests"}


def finding(node: str, cause: Cause = "ecc", severity: Any = "fail") -> Fault:
    return Fault(node, cause, severity, "seen", "wanted", "do this")


def report(*findings: Fault, cluster: Cluster = CLUSTER, deep: bool = False, test: Any = None) -> Report:
    facts = {node.name: FACTS for node in cluster.nodes}
    return Report(cluster, 1_700_000_000.0, deep, facts, findings, test, "", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    return Workspace(tmp_path).cluster("c")


def test_without_a_diagnosis_and_with_a_good_one_a_run_may_go_on(folder: ClusterFolder) -> None:
    gate.refuse_unfit(folder, CLUSTER)
    diag.keep(folder, report(finding("n1", severity="warn")))
    gate.refuse_unfit(folder, CLUSTER)


def test_an_unfit_node_is_refused_by_name_until_it_is_another_machine(folder: ClusterFolder) -> None:
    diag.keep(folder, report(finding("n1", "gpu missing")))
    with pytest.raises(NexaError, match="n1: gpu missing: seen") as refused:
        gate.refuse_unfit(folder, CLUSTER)
    assert "nexa diag" in refused.value.hint and "nexa provision" in refused.value.hint
    other = dataclasses.replace(NODES[1], instance_id="i-9")
    gate.refuse_unfit(folder, dataclasses.replace(CLUSTER, nodes=(NODES[0], other, NODES[2])))


def test_what_is_wrong_with_nobody_in_particular_holds_while_the_machines_do(folder: ClusterFolder) -> None:
    diag.keep(folder, report(finding(ALL, "slow network")))
    with pytest.raises(NexaError, match="all: slow network"):
        gate.refuse_unfit(folder, CLUSTER)
    gate.refuse_unfit(folder, dataclasses.replace(CLUSTER, nodes=NODES[:2]))


def test_a_torn_file_keeps_nobody_from_training(folder: ClusterFolder) -> None:
    files.write_text(gate.path_of(folder), '{"findings"')
    gate.refuse_unfit(folder, CLUSTER)


def test_what_only_deep_checks_can_see_is_not_made_good_by_short_ones(folder: ClusterFolder) -> None:
    assert not diag.wanted_depth(folder, False)
    diag.keep(folder, report(finding("n1", "disk slow"), deep=True))
    assert diag.wanted_depth(folder, False)
    diag.keep(folder, report(deep=True))
    assert not diag.wanted_depth(folder, False)


def test_a_slow_link_is_not_made_good_by_not_looking(folder: ClusterFolder) -> None:
    diag.keep(folder, report(finding("n1", "slow link"), finding("n2", "clock"), test={"busbw_gb_s": 1.0}))
    diag.keep(folder, report())
    with pytest.raises(NexaError, match="n1: slow link") as refused:
        gate.refuse_unfit(folder, CLUSTER)
    assert "clock" not in str(refused.value)
    diag.keep(folder, report(test={"busbw_gb_s": 1.0}))
    gate.refuse_unfit(folder, CLUSTER)


def test_the_report_has_facts_and_a_picture(folder: ClusterFolder) -> None:
    matrix = [[None, 1.0, 2.0], [1.0, None, 2.0], [1.0, 2.0, None]]
    path = diag.keep(folder, report(test={"matrix": matrix}), replaced={"n1": ["ecc"]})
    kept = files.read_json(path)
    assert kept["facts"]["n0"] == FACTS and kept["replaced"] == {"n1": ["ecc"]}
    assert path.with_suffix(".svg").read_text().startswith("<svg")
    verdict = gate.newest(folder)
    assert verdict and verdict["ok"] and verdict["report"] == path.name and "facts" not in verdict


@pytest.mark.parametrize(
    ("findings", "known", "fresh", "idle", "wanted"),
    [
        ([finding("n1")], {}, {"n1"}, True, ["n1"]),
        ([finding("n1")], {}, {"n1"}, False, ["n1"]),  # made a moment ago, so nothing is on it
        ([finding("n1")], {}, {"n0"}, True, []),  # it was there before, and nobody was told
        ([finding("n1")], {"n1": []}, set(), True, ["n1"]),
        ([finding("n1")], {"n1": []}, set(), False, []),  # a run is on it
        ([finding("n1", "unreachable")], {"n1": []}, set(), True, []),  # our own line may be down
        ([finding("n1", "unreachable")], {}, {"n1"}, True, ["n1"]),
        ([finding("n1", "disk full")], {}, {"n1"}, True, []),  # another machine would be filled too
        ([finding("n1", severity="warn")], {}, {"n1"}, True, []),
        ([finding(f"n{i}") for i in range(3)], {}, {"n0", "n1", "n2"}, True, []),  # no machine's fault
        ([finding(ALL, "slow network")], {}, {"n0", "n1", "n2"}, True, []),
    ],
)
def test_who_gets_another_machine(
    findings: list[Fault], known: dict[str, Any], fresh: set[str], idle: bool, wanted: list[str]
) -> None:
    assert list(acceptance.to_replace(report(*findings), known, fresh, idle)) == wanted


def test_hosts_of_the_user_are_never_replaced() -> None:
    own = dataclasses.replace(CLUSTER, provider="static")
    assert acceptance.to_replace(report(finding("n1"), cluster=own), {"n1": []}, {"n1"}, True) == {}


class Proving:
    """A provision whose diagnoses are given; the clock stands a minute later at each look."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *reports: Report) -> None:
        self.reports, self.said, self.again, self.clock = list(reports), list[str](), list[list[str]](), 1_700_000_000.0
        self.ctx = Context(Workspace(folder), None, self.said.append, now=self.later)  # type: ignore[arg-type]
        self.folder = self.ctx.workspace.cluster("c")
        monkeypatch.setattr(diag, "examine", lambda *args, **more: self.reports.pop(0))
        for node in NODES:
            self.folder.ledger(
                "node_start", at=self.clock - 600, node=node.name, id=node.instance_id, offer="local",
                usd_per_hour=60.0, disk_gb=0, public_ip=False, source="clock",
            )  # fmt: skip

    def later(self) -> float:
        self.clock += 60
        return self.clock

    def make_again(self, bad: list[str]) -> Cluster:
        self.again.append(bad)
        self.folder.ledger("node_stop", at=self.clock, node=bad[0], id="i-1", why="lost", source="clock")
        return dataclasses.replace(
            CLUSTER, nodes=(NODES[0], dataclasses.replace(NODES[1], instance_id="i-9"), NODES[2])
        )

    def prove(self) -> tuple[Cluster, Report]:
        config = ClusterConfig.model_validate({"name": "c", "provider": "local", "nodes": 3, "gpus_per_node": 1})
        fresh = {node.name for node in NODES}
        return acceptance.proven(
            self.ctx, self.folder, config, CLUSTER, fresh, again=lambda bad: self.make_again(list(bad)),
            during=lambda made: nullcontext(),
        )  # fmt: skip


def test_a_bad_node_is_replaced_once_and_its_cost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Proving(tmp_path, monkeypatch, report(finding("n1", "gpu missing")), report())
    made, last = trial.prove()
    assert trial.again == [["n1"]]
    assert made.nodes[1].instance_id == "i-9" and not last.failures
    told = next(row for row in files.read_lines(trial.folder.path / "ledger.jsonl") if row["event"] == "replaced")
    assert (told["node"], told["id"], told["causes"]) == ("n1", "i-1", ["gpu missing"])
    assert told["minutes"] == 1.0
    # The bad machine was on for 11 minutes, and two others waited for one: 13 minutes at 1 USD.
    assert told["usd"] == pytest.approx(13.0)
    journal = files.read_lines(trial.folder.path / "journal.jsonl")
    done = next(row for row in journal if row["step"] == "replace" and row["state"] == "done")
    assert (done["minutes"], done["usd"]) == (told["minutes"], told["usd"])
    assert any("n1 (gpu missing) cost 1.0 min and 13.00 USD" in line for line in trial.said)
    verdict = gate.newest(trial.folder)
    assert verdict and verdict["ok"] and verdict["replaced"] == {"n1": ["gpu missing"]}


def test_a_second_bad_one_is_not_replaced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = report(finding("n1", "gpu missing"))
    trial = Proving(tmp_path, monkeypatch, bad, bad)
    _, last = trial.prove()
    assert trial.again == [["n1"]]
    with pytest.raises(NexaError, match="n1: gpu missing"):
        acceptance.refuse(last)


def test_who_is_to_blame_when_the_group_does_not_come_together() -> None:
    waiting, late = {"stage": "joined", "error": "timed out"}, {"stage": "imported", "error": "refused"}
    assert blamed({"n0": waiting, "n1": late}) == {"n1": "refused (after stage 'imported')"}
    assert blamed({"n0": waiting, "n1": {}}) == {"n1": "no answer (after stage 'none')"}
    assert blamed({"n0": {"stage": "pairs"}, "n1": {"stage": "pairs", "error": "died"}}) == {"n1": "died"}
    assert blamed({"n0": waiting, "n1": waiting}) == {ALL: "timed out (after stage 'joined')"}
    assert STAGES[0] == ""


def test_the_interface_is_named_only_where_it_is_the_only_one() -> None:
    assert interface({"peers": {"a": {"interface": "eth1"}, "b": {"interface": "eth1"}}}) == "eth1"
    assert interface({"peers": {"a": {"interface": "eth1"}, "b": {"interface": "wg0"}}}) == ""
    assert interface({"peers": {}}) == ""
