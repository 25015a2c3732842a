"""What a supervisor and its nodes tell becomes messages, each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from nexa_dist.model import Decision, End
from nexa_dist.ops.notify import announcer as announcing
from nexa_dist.ops.notify.announcer import Announcer, Heard
from nexa_dist.ops.notify.outbox import Outbox, close_all
from nexa_dist.ops.notify.targets import Target
from nexa_dist.plan.money.budget import Budget
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.workspace import RunFolder
from tests.unit import records
from tests.unit.cloud_server import Desk

PRICED = replace(records.CLUSTER, nodes=(replace(records.CLUSTER.nodes[0], price_usd_per_hour=6.0),))


class View:
    """A view that keeps what it is handed."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.ticks = 0

    def event(self, node: str, record: Mapping[str, Any]) -> None:
        self.events.append(record)

    def tick(self) -> None:
        self.ticks += 1

    def line(self, *_: Any) -> None: ...
    def quiet(self, *_: Any) -> None: ...
    def note(self, *_: Any) -> None: ...
    def attempt(self, *_: Any) -> None: ...


@pytest.fixture
def made(desk: Desk) -> Announcer:
    """A run of an hour on a node at 6 USD/h whose attempt failed, and a target that cannot be reached."""
    end = End("rank", "rank 0 on n0: exit code 1", "n0", 0)
    row = Attempt(1, "failed", desk.now() - 3600, 1, "x:1", ended_unix=desk.now(), cause=end.words, why="oom", end=end)
    record = Run(PRICED, {}, {}, [row], "train_x")
    found = Announcer(desk.ctx, RunFolder(desk.root / "runs" / "train_x"), record)
    assert found.outbox.targets == ()  # without notify nothing is done
    found.outbox = Outbox(RunFolder(desk.root / "runs" / "train_x"), [Target({}, missing="no")], desk.ctx.runner)
    return found


def keys(announcer: Announcer) -> list[str]:
    return list(announcer.outbox.marks.messages)


def test_a_failure_is_told_with_its_cause_and_what_it_has_cost(made: Announcer) -> None:
    for action in ("wait", "wait", "restart"):
        made.decided(Decision(action))  # type: ignore[arg-type]
    made.replaced(["n0"], "n0 made anew")
    made.ended("failed", "given up")
    assert keys(made) == ["attempt_failed:1", "replaced:1:n0", "run_ended:1"]
    told = made.outbox.marks.messages["attempt_failed:1"]
    assert (told["usd"], told["why"], told["cause"]) == (6.0, "oom", "rank 0 on n0: exit code 1")
    assert made.outbox.marks.messages["run_ended:1"]["cause"] == "given up"


def test_a_notice_that_the_node_has_told_of_is_a_mark_and_the_view_sees_all(made: Announcer) -> None:
    view = View()
    heard = Heard(view, made, [])
    heard.event("n0", {"event": "notice", "at": 1.0, "at_unix": 1.8e9, "action": "terminate"})
    heard.event("n0", {"event": "told", "at": 2.0, "key": "notice:n0:1800000000", "sent": True})
    heard.event("n0", {"event": "told", "at": 2.0, "key": "run_ended:1", "sent": False, "why": "HTTP 500"})
    assert keys(made) == ["notice:n0:1800000000"] and made.outbox.marks.by_nodes == {"notice:n0:1800000000"}
    assert len(view.events) == 3


def test_a_deadline_is_told_when_it_is_near_and_a_budget_when_it_warns(made: Announcer, desk: Desk) -> None:
    heard = Heard(View(), made, [("deadline:run:1", "max_hours", desk.now() + 1000, 10_000.0)])
    heard.tick()
    assert keys(made) == []
    desk.slept.append(200.0)
    heard.tick()
    heard.tick()
    made.budget(Budget(10.0, 5.0, 6.0), 0.5, "5.00 of 10.00 USD")
    assert keys(made) == ["deadline:run:1", "budget:budget of the cluster:10.00:0.5"]


def test_what_could_not_be_sent_is_said_at_the_end(made: Announcer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "SETTLE_S", 0.0)
    said: list[str] = []
    made.ended("completed", "")
    made.close(said.append)
    assert said == []  # nothing waits for it before the command ends
    close_all()
    assert "1 messages could not be sent" in said[-1] and "nexa notify train_x" in said[-1]
