"""nexa cost: the right ledger, one's own nodes, and a life from the first node to the history."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.cli import main
from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import UsageError
from nexa_dist.ops.money import cost
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder
from tests.unit.cloud_server import NOW, Desk


def config(nodes: int = 2, price: float | None = 3.6) -> ClusterConfig:
    told = {"name": "own", "provider": "local", "nodes": nodes, "gpus_per_node": 1, "price_usd_per_hour": price}
    return ClusterConfig.model_validate({key: value for key, value in told.items() if value is not None})


def folder(desk: Desk, name: str = "own") -> ClusterFolder:
    return desk.ctx.workspace.cluster(name)


def begin(desk: Desk, of: ClusterConfig | None = None, lost: tuple[str, ...] = ()) -> None:
    usage.begin_own(desk.ctx, folder(desk), of or config(), lost)
    usage.advance(desk.ctx, folder(desk), "booting")


def run(desk: Desk, run_id: str, attempts: list[dict[str, Any]], provider: str = "local", **config: Any) -> None:
    node = {"address": "127.0.0.2", "gpus": 1, "price_usd_per_hour": 3.6}
    layout = {"python": "p", "scratch": "s", "shared": "s", "durable": "d"}
    nodes = [{"name": name, **node} for name in ("n0", "n1")]
    cluster = {"name": "own", "provider": provider, "nodes": nodes, "layout": layout}
    common = {"world_size": 2, "rdzv": "x:1", "ranks": {"n0": [0, 0], "n1": [1, 1]}, "resume_step": None}
    rows = [{"attempt": place, **common, **row} for place, row in enumerate(attempts, 1)]
    record = {"run_id": run_id, "cluster": cluster, "config": config, "nodes": {}, "attempts": rows}
    files.write_json(desk.root / "runs" / run_id / "run.json", record)


def ended(begin: float, end: float, last: int = 100, **more: Any) -> dict[str, Any]:
    row = {"state": "completed", "started_unix": NOW + begin, "ended_unix": NOW + end}
    return {**row, "end": {"words": "", "last_step": last}, "next": {"action": "done"}, **more}


def report(desk: Desk, named: str = "") -> dict[str, Any]:
    made = cost.report(desk.ctx, cost.find(desk.ctx, named)[0])
    assert json.loads(json.dumps(made)) == made
    return made


def test_a_cluster_of_ones_own_from_its_first_node_on(desk: Desk) -> None:
    begin(desk)
    desk.slept.append(100.0)
    usage.advance(desk.ctx, folder(desk), "bootstrapping")
    desk.slept.append(400.0)
    usage.advance(desk.ctx, folder(desk), "idle")
    run(desk, "train_1", [ended(600, 1600)], tags=["hello"])
    desk.slept.append(1500.0)
    told = report(desk)
    assert told["usd"] == pytest.approx(4.0)
    assert told["usd_per_hour"] == 7.2
    assert {name: part["seconds"] for name, part in told["phases"].items() if part["seconds"]} == {
        "booting": 200, "bootstrapping": 800, "training": 2000, "idle": 1000,
    }  # fmt: skip
    (row,) = told["runs"]
    assert (row["usd"], row["steps"], row["usd_per_step"]) == pytest.approx((2.0, 100, 0.02))
    assert row["usd_per_million_tokens"] is None
    assert told["tags"] == {"hello": {"seconds": 2000.0, "usd": 2.0}}
    assert told["waste"]["suggestion"]["rule"] == "boot"


def test_tokens_come_from_the_manifest(desk: Desk) -> None:
    begin(desk)
    run(desk, "train_1", [ended(0, 1000)])
    manifest = {"eval_report": {"steps": 100, "tokens": 4e6}, "tags": ["experiment:a"]}
    files.write_json(desk.root / "runs" / "manifests" / "train_1.json", manifest)
    desk.slept.append(1000.0)
    (row,) = report(desk)["runs"]
    assert (row["usd"], row["usd_per_million_tokens"]) == pytest.approx((2.0, 0.5))
    assert row["tags"] == ["experiment:a"]


def test_doing_it_again_starts_no_second_meter_and_a_lost_node_ends(desk: Desk) -> None:
    begin(desk)
    desk.slept.append(1000.0)
    begin(desk)
    begin(desk, lost=("n1",))
    begin(desk, config(nodes=1))
    rows = usage.Reading(usage.read(folder(desk).path), NOW + 2000).bill.nodes
    assert [(row.node, row.seconds) for row in rows] == [("n0", 2000), ("n1", 1000), ("n1", 0)]


def test_ones_own_machine_costs_nothing_unless_the_file_says_so(desk: Desk) -> None:
    begin(desk, config(price=None))
    desk.slept.append(3600.0)
    told = report(desk)
    assert (told["usd"], told["unpriced"]) == (0, [])
    assert told["waste"]["suggestion"] is None


@contextlib.contextmanager
def greets(host_key: bytes) -> Iterator[int]:
    """The port of a node's sshd that answers one caller."""

    def answer() -> None:
        peer, _ = door.accept()
        with peer:
            peer.sendall(f"SSH-2.0-x {hashlib.sha256(host_key).hexdigest()[:16]}\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield door.getsockname()[1]
        thread.join(90)


def test_nodes_of_ones_own_that_are_off_have_ended(desk: Desk) -> None:
    """n0 still answers, n1 ended by its deadline, n2 nobody knows when, and another has its port; n3 is being made."""
    begin(desk, config(nodes=3))
    desk.slept.append(100.0)
    usage.advance(desk.ctx, folder(desk), "bootstrapping")
    begin(desk, config(nodes=4))
    files.write_text(folder(desk).path / "nodes" / "n1" / "due" / "acts_unix", f"{NOW + 1000:.0f}\n")
    for name in ("n0", "n2"):
        files.write_text(folder(desk).ssh / "host_keys" / f"{name}.pub", "key of n0")
    with greets(b"key of n0") as n0, greets(b"another") as n2, socket.socket() as off:
        off.bind(("127.0.0.1", 0))
        ports = {"n0": n0, "n1": off.getsockname()[1], "n2": n2, "n3": off.getsockname()[1]}
        nodes = {name: {"address": "127.0.0.1", "port": port} for name, port in ports.items()}
        files.write_json(folder(desk).terraform / "nexa.tfvars.json", {"nodes": nodes})
        desk.slept.append(1900.0)
        made_of = {row["node"]: row for row in report(desk)["nodes"]}
    assert [made_of[name]["stop_unix"] for name in ports] == [None, NOW + 1000, NOW + 2000, None]
    assert made_of["n0"]["seconds"] == 2000


def test_a_cluster_that_is_gone_is_found_in_the_history(desk: Desk) -> None:
    begin(desk)
    run(desk, "train_1", [ended(100, 900)])
    desk.slept.append(1000.0)
    usage.end_all(desk.ctx, folder(desk), "teardown")
    kept = desk.root / ".nexa" / "history" / "own_2027-01-15T081640Z"
    kept.parent.mkdir(parents=True)
    folder(desk).path.rename(kept)
    desk.slept.append(9e5)
    for named in ("own", "", "train_1"):
        ledger, run_id = cost.find(desk.ctx, named)
        assert run_id == ("train_1" if named == "train_1" else "")
        assert ledger.bill.usd == pytest.approx(2.0)
        assert ledger.bill.run("train_1").usd == pytest.approx(1.6)
    begin(desk)  # another cluster of that name: the run is not one of its
    assert report(desk, "own")["runs"] == []
    assert cost.find(desk.ctx, "train_1")[0].bill.run("train_1").usd == pytest.approx(1.6)


def test_own_hosts_cost_the_time_of_the_attempts(desk: Desk) -> None:
    rows = [ended(0, 1000, state="failed", next={"action": "restart"}), ended(1500, 2500, 190, resume_step=90)]
    run(desk, "train_1", rows, provider="static")
    ledger, run_id = cost.find(desk.ctx, "train_1")
    assert run_id == "train_1"
    made = ledger.bill
    assert made.usd == pytest.approx(4.0)
    assert made.phases["lost"].seconds == pytest.approx(200)


def test_a_name_that_nobody_knows(desk: Desk) -> None:
    with pytest.raises(UsageError):
        cost.find(desk.ctx, "nobody")
    with pytest.raises(UsageError):
        cost.find(desk.ctx, "")
    begin(desk)
    run(desk, "train_1", [])
    with pytest.raises(UsageError, match="has not begun"):
        cost.find(desk.ctx, "train_1")


def test_the_verb_says_it_in_tables_and_as_json(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXA_WORKSPACE", str(desk.root))
    begin(desk)
    run(
        desk,
        "train_1",
        [ended(0, 500, 50, state="failed", next={"action": "restart"}), ended(500, 1000, resume_step=40)],
    )
    desk.slept.append(1000.0)
    usage.end_all(desk.ctx, folder(desk), "teardown")
    assert main(["cost"]) == 0
    told = capsys.readouterr()
    assert "own: 2.00 USD (instances 2.00, disks 0.00, addresses 0.00, logs sent here 0.00); now 0.00 USD/h" in told.err
    cells = [line.split("\t") for line in told.out.splitlines()]
    assert ["n0", "2027-01-15T08:00:00Z", "2027-01-15T08:16:40Z", "0.278", "1.0000"] in [[r[0], *r[3:]] for r in cells]
    assert ["lost", "0.056", "0.2000"] in cells
    assert ["train_1", "completed", "0.556", "2.0000", "1.8000", "0.2000", "-", "0.02", "-"] in cells
    assert main(["cost", "train_1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["phases"]["lost"] == {"seconds": 200.0, "usd": 0.2}
    assert main(["cost", "own", "--waste"]) == 0
    assert "saves most (0.20 USD at most): save checkpoints more often" in capsys.readouterr().out
    assert main(["cost", "nobody"]) == 2
    assert "no run matches" in capsys.readouterr().err


def test_a_ledger_that_is_torn_in_any_line_is_read(desk: Desk) -> None:
    begin(desk)
    path: Path = folder(desk).path / "ledger.jsonl"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 3):  # in each line, before and behind each word
        path.write_bytes(whole[:cut] + b"\n" + whole)
        assert len(report(desk)["nodes"]) == 2
