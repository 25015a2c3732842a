"""`nexa stop` when nodes do not answer: a machine that the cloud calls off holds nothing, any other one may."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from nexa_dist.errors import StillRunning
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.runs import stop as runs_stop
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.workspace import RunFolder
from tests.unit import records
from tests.unit.cloud_server import Desk

CLUSTER = Cluster("c", "aws", (Node("n0", "198.51.100.1", 1, instance_id="i-0"),), Layout("p", "s", "s", "d"))


@pytest.fixture
def silent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that is over, whose one node does not answer."""
    made = RunFolder(desk.root / "runs" / "train_20261122_200000_x")
    made.path.mkdir(parents=True)
    attempt = {"attempt": 1, "state": "completed", "started_unix": 1.0, "ended_unix": 2.0, "next": {"action": "done"}}
    attempt |= {"world_size": 1, "rdzv": "x:1"}
    nodes = {"n0": {"run_dir": "/s/x"}}
    records.put(made, {"cluster": CLUSTER.to_json(), "config": {}, "nodes": nodes, "attempts": [attempt]})

    @contextlib.contextmanager
    def session(*_: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(runs_stop, "session", session)
    monkeypatch.setattr(runs_stop, "reach", lambda *_: ([], {"n0": "node n0: no route to host"}))
    return made


def test_a_machine_that_is_off_has_nothing_left(desk: Desk, silent: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_stop, "is_off", lambda *_: True)
    assert runs_stop.stop(desk.ctx, silent)["state"] == "completed"
    assert desk.said == ["  n0: its machine is off, so nothing is left there"]


def test_one_that_is_silent_may_still_run(desk: Desk, silent: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_stop, "is_off", lambda *_: False)
    with pytest.raises(StillRunning, match="n0: no route to host"):
        runs_stop.stop(desk.ctx, silent)


def rank(code: int, at: float) -> dict[str, Any]:
    return {"rank": 0, "code": code, "signal": 0, "at": at}


def test_what_failed_only_since_it_was_asked_to_stop_is_stopped() -> None:
    record = Run(CLUSTER, {}, {}, [Attempt(1, "running", 1.0, 2, "x:1", skew_s={"n1": 50.0})])
    lost = {"state": "failed", "ranks": [rank(1, 100.2)]}
    stopped = {"state": "stopped", "ranks": [rank(143, 150.4)]}
    assert runs_stop._state({"n0": lost, "n1": stopped}, record, 100.0) == "stopped"
    assert runs_stop._state({"n0": {**lost, "ranks": [rank(1, 90.0)]}, "n1": stopped}, record, 100.0) == "failed"
    assert runs_stop._state({"n0": stopped, "n1": {**lost, "ranks": [rank(1, 140.0)]}}, record, 100.0) == "failed"
    assert runs_stop._state({"n0": {"state": "completed"}, "n1": {"state": "completed"}}, record, 100.0) == "completed"
    assert runs_stop._state({"n0": {"state": "failed"}, "n1": stopped}, record, 100.0) == "stopped"
    assert runs_stop._state({"n0": {"state": "failed"}}, record, 100.0) == "failed"


def test_a_living_supervisor_gets_time_to_write_the_end(
    desk: Desk, silent: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = silent.load()
    record.started(next=None)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            record.close("stopped", "")

    ctx = dataclasses.replace(desk.ctx, sleep=sleep)
    monkeypatch.setattr(runs_stop, "reach", lambda *_: ([], {}))
    with silent.locked("run"):
        assert runs_stop.stop(ctx, silent)["state"] == "stopped"
    assert len(waited) == 3


def test_and_one_that_writes_none_is_said(desk: Desk, silent: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    record = silent.load()
    record.started(next=None)
    clock = iter(range(0, 10_000, 30))
    ctx = dataclasses.replace(desk.ctx, sleep=lambda _: None, now=lambda: float(next(clock)))
    monkeypatch.setattr(runs_stop, "reach", lambda *_: ([], {}))
    with silent.locked("run"):
        assert runs_stop.stop(ctx, silent)["state"] == "stopping"
