"""What the attempts of run.json tell about money."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.plan.money.bill import Bill, bill
from nexa_dist.plan.money.phases import events, steps

T = 1_800_000_000.0


def attempt(number: int, begin: float, end: float | None, first: int | None, last: int | None, **more: Any) -> Any:
    row = {"attempt": number, "state": "failed", "started_unix": T + begin, "resume_step": first}
    row |= {"ranks": {"n0": [0, 0], "n1": [1, 1]}}
    if end is not None:
        row |= {"ended_unix": T + end, "end": {"words": "n1 is gone", "last_step": last}}
        row |= {"next": {"action": "restart"}}
    return {**row, **more}


def nodes() -> list[dict[str, Any]]:
    row = {"event": "node_start", "at": T, "offer": "a us-east-1a spot", "usd_per_hour": 3.6, "source": "cloud"}
    return [{**row, "node": name, "id": f"i-{name}"} for name in ("n0", "n1")]


def of(*attempts: Any, until: float) -> Bill:
    return bill([*nodes(), *events("r", attempts)], T + until)


def seconds(made: Bill) -> dict[str, float]:
    return {name: share.seconds for name, share in made.phases.items() if share.seconds}


def test_a_training_that_goes_well_is_training_and_then_idle() -> None:
    made = of(attempt(1, 100, 700, None, 60, state="completed", next={"action": "done"}), until=1000)
    assert seconds(made) == {"training": 1200, "idle": 2 * 400}
    assert made.run("r").usd == pytest.approx(1.2)


def test_what_the_next_attempt_did_again_is_lost_by_its_share_of_the_steps() -> None:
    first, second = attempt(1, 0, 1000, None, 100), attempt(2, 1100, None, 80, None, state="running")
    made = of(first, second, until=2000)
    assert seconds(made) == {"training": 2 * (800 + 900), "lost": 2 * 200, "recovering": 2 * 100}


def test_a_checkpoint_that_is_lost_takes_more_of_what_was_done_before() -> None:
    rows = [attempt(1, 0, 1000, None, 100), attempt(2, 1000, 1400, 80, 120), attempt(3, 1400, None, 50, None)]
    told = {event["attempt"]: event["seconds"] for event in events("r", rows) if event["event"] == "lost"}
    assert told == {1: 500.0, 2: 400.0}


@pytest.mark.parametrize(("state", "told"), [("failed", 600.0), ("completed", None), ("stopped", None)])
def test_an_attempt_without_a_step_is_lost_if_it_failed(state: str, told: float | None) -> None:
    rows = [attempt(1, 0, 600, None, None, state=state, next={"action": "stop"})]
    found = [event["seconds"] for event in events("r", rows) if event["event"] == "lost"]
    assert found == ([told] if told else [])


def test_after_the_last_attempt_nodes_are_idle_and_a_decided_one_has_them_recover() -> None:
    stopped = attempt(1, 0, 600, None, 9, next={"action": "stop"})
    assert seconds(of(stopped, until=700))["idle"] == 200
    waiting = attempt(1, 0, 600, None, 9, next={"action": "wait"})
    assert seconds(of(waiting, until=700))["recovering"] == 200


def test_a_node_that_a_smaller_attempt_leaves_out_is_idle() -> None:
    second = attempt(2, 600, None, 10, None, ranks={"n0": [0, 0]})
    made = of(attempt(1, 0, 600, None, 10), second, until=1000)
    assert seconds(made) == {"training": 1200 + 400, "idle": 400}


def test_times_are_those_of_the_nodes_clocks() -> None:
    rows = [attempt(1, 0, 600, None, 9, skew_s={"n0": 100.0, "n1": 101.0})]
    assert [event["at"] - T for event in events("r", rows) if event["event"] == "phase"][::2] == [100.5, 700.5]
    near = [attempt(1, 0, 600, None, 9, skew_s={"n0": 0.4})]
    assert events("r", near)[0]["at"] == T


def test_the_highest_step() -> None:
    assert steps([attempt(1, 0, 1, None, 30), attempt(2, 1, 2, 20, 25), attempt(3, 3, None, 20, None)]) == 30
    assert steps([]) is None
