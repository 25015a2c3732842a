"""The recovery decision: a table of what happened and what follows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_dist.model import Decision, End
from nexa_dist.plan.runs.recovery import PAUSES_S, SAME_STEP, Nodes, Policy, decide

FIT = Nodes(("n0", "n1"))
DEFAULT = Policy()
GONE = Nodes(("n0",), ("n1",), replaceable=True)


def end(kind: Any = "rank", last: int | None = 50, first: int | None = 0, at: float = 100.0, **more: Any) -> End:
    return End(kind, f"{kind} ended", first_step=first, last_step=last, started_unix=at - 60, ended_unix=at, **more)


def after(*ends: End, nodes: Nodes = FIT, policy: Policy = DEFAULT, left: float | None = None) -> Decision:
    return decide(ends, nodes, policy, left)


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("completed", "done"),
        ("stopped", "stop"),
        ("deadline", "stop"),
        ("disconnected", "stop"),
        ("config", "stop"),
        ("rank", "restart"),
        ("killed", "restart"),
        ("oom", "restart"),
        ("launcher", "restart"),
        ("agent", "restart"),
        ("hang", "restart"),
        ("start", "restart"),
    ],
)
def test_what_a_first_end_leads_to(kind: str, action: str) -> None:
    assert after(end(kind)).action == action


def test_a_lost_node_is_replaced_and_named() -> None:
    assert after(end("node"), nodes=GONE) == Decision("replace", "n1 made anew", ("n1",))
    assert after(end("notice"), nodes=GONE).action == "replace"
    assert after(end("rank"), nodes=GONE).action == "replace"  # also when something else ended the attempt


def test_without_capacity_it_waits_then_shrinks_only_when_allowed() -> None:
    def missing(waited_s: float) -> Nodes:
        return Nodes(("n0",), ("n1",), replaceable=True, refused="no capacity", waited_s=waited_s)

    policy = Policy(wait_s=60)
    waiting = after(end("node"), nodes=missing(59), policy=policy)
    assert (waiting.action, waiting.after_s) == ("wait", 30.0)
    assert "no capacity" in waiting.why
    assert after(end("node"), nodes=missing(60), policy=policy).action == "stop"
    fewer = Policy(wait_s=60, min_nodes=1)
    assert after(end("node"), nodes=missing(59), policy=fewer).action == "wait"
    shrunk = after(end("node"), nodes=missing(60), policy=fewer)
    assert (shrunk.action, shrunk.nodes) == ("shrink", ("n0",))
    assert after(end("node"), nodes=missing(60), policy=Policy(wait_s=60, min_nodes=2)).action == "stop"


def test_an_own_host_is_waited_for() -> None:
    own = Nodes(("n0",), ("n1",), replaceable=False)
    assert after(end("node"), nodes=own).action == "wait"
    assert after(end("node"), nodes=Nodes(("n0", "n1"))).action == "restart"  # it came back


def test_a_crash_loop_before_the_first_step_stops_at_the_second() -> None:
    first = end(last=None)
    assert after(first).action == "restart"
    stopped = after(first, end(last=None, at=200))
    assert stopped.action == "stop"
    assert "2 times in a row before its first step" in stopped.why
    assert after(end(last=0), end(last=0, at=200)).action == "stop"
    resumed = end(last=40, first=40, at=200)  # resumed at 40, and fell over at once
    assert after(end(last=45), resumed, end(last=40, first=40, at=300)).action == "stop"


def test_the_same_step_again_and_again_stops() -> None:
    ends = [end(at=100.0 * n) for n in range(1, SAME_STEP + 1)]
    assert [after(*ends[:n]).action for n in range(1, SAME_STEP + 1)] == ["restart", "restart", "stop"]
    assert "3 times in a row at step 50" in after(*ends).why


def test_progress_resets_the_count() -> None:
    ends = [end(at=100), end(at=200), end(last=60, at=300), end(last=60, at=400)]
    assert after(*ends).action == "restart"
    assert after(*ends, end(last=60, at=500)).action == "stop"


def test_a_preemption_is_no_crash() -> None:
    ends = [end("node", at=100.0 * n) for n in range(1, 6)]
    assert after(*ends, nodes=GONE).action == "replace"


def test_the_budget_of_restarts_holds_for_every_cause_within_an_hour() -> None:
    ends = [end("node", at=100.0 * n) for n in range(1, 5)]
    assert after(*ends, nodes=GONE, policy=Policy(restarts_per_hour=3)).action == "stop"
    apart = [end("node", at=4000.0 * n) for n in range(1, 5)]
    assert after(*apart, nodes=GONE, policy=Policy(restarts_per_hour=3)).action == "replace"
    assert after(end(), policy=Policy(restarts_per_hour=0)).action == "stop"


def test_a_script_that_reports_no_step_is_judged_by_time() -> None:
    long = End("rank", "x", started_unix=0, ended_unix=1000)
    again = End("rank", "x", started_unix=1000, ended_unix=2000)
    assert after(long, again, End("rank", "x", started_unix=2000, ended_unix=3000)).action == "restart"


def test_pauses_grow_and_the_deadline_wins() -> None:
    ends = [end("node", at=100.0 * n) for n in range(1, 9)]
    pauses = [after(*ends[:n]).after_s for n in range(1, 9)]
    assert pauses == [*PAUSES_S, PAUSES_S[-1], PAUSES_S[-1]]
    assert after(end(), left=0.0) == Decision("stop", "deadline")


kinds = st.sampled_from(["rank", "killed", "oom", "hang", "node", "notice", "agent", "launcher", "prepare", "start"])


@given(st.lists(st.tuples(kinds, st.integers(0, 5)), min_size=40, max_size=60), st.booleans())
def test_nothing_goes_on_for_ever_without_progress(history: list[tuple[Any, int]], gone: bool) -> None:
    """Whatever happens at steps that were reached before, within an hour it is given up."""
    ends = [end(kind, last=step, at=10.0 * n) for n, (kind, step) in enumerate(history)]
    assert any(after(*ends[: n + 1], nodes=GONE if gone else FIT).action == "stop" for n in range(len(ends)))
