"""What one watcher decides from what the nodes report: no node, no time, no ssh."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.model import End
from nexa_dist.node.protocol import VERSION, Reason
from nexa_dist.ops.runs.attempt_state import AttemptState
from nexa_dist.run.logs.items import AgentEvent, Ended, Quiet


def event(node: str, name: str, **fields: Any) -> AgentEvent:
    return AgentEvent(node, {"event": name, "at": fields.pop("at", 1.0), **fields})


def end(node: str, state: str, **more: Any) -> Ended:
    return Ended(node, {"state": state, "ranks": [], **more})


def ended(watch: AttemptState, *lost: str) -> End:
    return watch.end(lost, 0, 0.0, 100.0)


def begun(*nodes: str, attempt: int = 1) -> AttemptState:
    watch = AttemptState(nodes, attempt)
    for node in nodes:
        assert watch.step(event(node, "started", attempt=attempt, version=VERSION)) == ""
    return watch


def test_what_an_earlier_attempt_left_is_not_of_this_one() -> None:
    watch = AttemptState(("n0",), attempt=2)
    old = [
        ("started", {"attempt": 1, "version": VERSION}),
        ("prepared", {}),
        ("rank_exit", {"rank": 0, "code": 1, "signal": 0}),
    ]
    for name, fields in old:
        assert watch.step(event("n0", name, **fields)) == ""
    assert watch.failures == []
    watch.step(event("n0", "started", attempt=2, version=VERSION))
    assert watch.step(event("n0", "prepared")) == "go"


def test_go_only_when_every_node_is_prepared() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n1", "prepared")) == ""
    assert watch.step(event("n0", "prepared")) == "go"


def test_no_go_for_ranks_that_went_with_start() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n1", "prepared", go=True)) == ""
    assert watch.step(event("n0", "prepared", go=True)) == ""


def test_the_first_rank_that_failed_is_named_and_the_others_are_stopped_once() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n1", "rank_exit", rank=3, code=1, signal=0, at=20.5)) == Reason.FAILURE
    watch.stopping = Reason.FAILURE
    assert watch.step(event("n0", "rank_exit", rank=1, code=0, signal=9, at=20.1)) == ""
    assert watch.step(event("n0", "rank_exit", rank=0, code=0, signal=15, at=21.0)) == ""
    watch.step(end("n0", "stopped", reason=Reason.FAILURE))
    assert not watch.done
    watch.step(end("n1", "failed", reason="torchrun"))
    assert (watch.done, watch.state) == (True, "failed")
    first = ended(watch)
    assert (first.kind, first.node, first.rank, first.words) == ("killed", "n0", 1, "rank 1 on n0: signal 9")


def test_who_failed_first_is_told_by_one_clock() -> None:
    watch = begun("n0", "n1")
    watch.skew_s = {"n1": 100.0}
    watch.step(event("n1", "rank_exit", rank=1, code=1, signal=0, at=120.0))
    watch.step(event("n0", "rank_exit", rank=0, code=1, signal=0, at=21.0))
    assert ended(watch).words == "rank 1 on n1: exit code 1"


def test_an_attempt_whose_ranks_all_exit_0_is_completed() -> None:
    watch = begun("n0")
    watch.step(event("n0", "rank_exit", rank=0, code=0, signal=0))
    watch.step(end("n0", "completed"))
    assert (watch.done, watch.state, watch.first_failure) == (True, "completed", None)


def test_a_deadline_on_the_node_is_a_stop_and_no_failure() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n0", "stopping", reason="deadline")) == ""
    assert watch.step(event("n1", "rank_exit", rank=2, code=143, signal=0)) == ""
    watch.step(end("n0", "stopped", reason="deadline"))
    watch.step(end("n1", "failed", reason="torchrun"))
    assert (watch.state, watch.stopping) == ("stopped", "deadline")


def test_a_rank_that_loses_a_peer_whom_somebody_stopped_has_not_failed() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n1", "rank_exit", rank=2, code=1, signal=0, at=20.3)) == Reason.FAILURE  # heard first
    watch.stopping = Reason.FAILURE
    watch.step(event("n1", "stopping", reason=Reason.FAILURE, at=20.4))
    watch.step(event("n0", "stopping", reason="stopped by the user", at=20.0))
    watch.step(end("n0", "stopped", reason="stopped by the user"))
    watch.step(end("n1", "failed", reason="torchrun"))
    assert (watch.state, ended(watch).kind, ended(watch).words) == ("stopped", "stopped", "stopped by the user")


def test_but_one_that_failed_before_somebody_stopped_the_rest_has() -> None:
    watch = begun("n0", "n1")
    watch.skew_s = {"n0": 100.0}
    watch.step(event("n1", "rank_exit", rank=2, code=1, signal=0, at=20.0))
    watch.stopping = Reason.FAILURE
    watch.step(event("n0", "stopping", reason="stopped by the user", at=125.0))
    assert (watch.state, ended(watch).words) == ("failed", "rank 2 on n1: exit code 1")


def test_silence_alone_is_no_end_and_a_witness_makes_it_one() -> None:
    watch = begun("n0", "n1")
    assert watch.step(Quiet("n1", 3600.0)) == ""
    assert not watch.ends and not watch.failures
    assert watch.lost("n1", "its instance i-1 is terminated") == Reason.FAILURE
    assert watch.ends["n1"]["state"] == "unreachable"
    assert watch.first_failure is not None
    assert watch.first_failure.node == "n1"


def test_an_attach_after_the_failure_still_learns_which_rank_it_was() -> None:
    watch = begun("n0")
    ranks = [{"rank": 1, "code": 7, "signal": 0, "at": 3.0}, {"rank": 0, "code": 0, "signal": 15, "at": 4.0}]
    assert watch.step(end("n0", "failed", reason="torchrun", ranks=ranks)) == Reason.FAILURE
    assert (ended(watch).kind, ended(watch).words) == ("rank", "rank 1 on n0: exit code 7")


def test_a_lost_node_explains_what_its_peers_died_of() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n0", "rank_exit", rank=0, code=1, signal=0)) == Reason.FAILURE
    watch.stopping = Reason.FAILURE
    watch.step(end("n0", "failed", reason="torchrun"))
    watch.lost("n1", "its instance i-1 is terminated")
    assert watch.done
    assert (ended(watch, "n1").kind, ended(watch, "n1").words) == ("node", "node n1: its instance i-1 is terminated")
    assert ended(watch).kind == "rank"


def test_a_lost_agent_is_the_cause_of_what_the_other_nodes_ranks_died_of() -> None:
    watch = begun("n0", "n1")
    watch.step(event("n1", "rank_exit", rank=2, code=0, signal=15, at=1.0))
    watch.stopping = Reason.FAILURE
    watch.step(event("n1", "rank_exit", rank=3, code=1, signal=0, at=2.0))
    watch.step(end("n1", "failed", reason="torchrun"))
    assert ended(watch).words == "rank 3 on n1: exit code 1"
    watch.step(end("n0", "lost", reason="the node agent is gone without a word"))
    assert (ended(watch).kind, ended(watch).node) == ("agent", "n0")


def test_a_spot_notice_stops_every_node_and_is_no_failure_of_a_rank() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n1", "notice", action="terminate", at_unix=120.0)) == Reason.NOTICE
    watch.stopping = Reason.NOTICE
    for node, rank in (("n0", 0), ("n1", 2)):
        assert watch.step(event(node, "rank_exit", rank=rank, code=143, signal=0, step=41)) == ""
        watch.step(end(node, "stopped", reason=Reason.NOTICE))
    found = ended(watch)
    assert (found.kind, found.node, found.last_step) == ("notice", "n1", 41)


def test_a_hang_is_the_cause_and_what_ends_after_it_is_not() -> None:
    watch = begun("n0", "n1")
    watch.step(event("n0", "progress", steps={"0": 40, "1": 41}, saved=40, at=7.0))
    assert watch.step(event("n0", "hang", ranks=[1], stalled_s=30.0, steps={"0": 41, "1": 40}, at=50.0)) == "hang"
    watch.stopping = "hang"
    watch.step(event("n0", "rank_exit", rank=0, code=0, signal=6, at=49.0))
    watch.step(end("n0", "failed", reason="hang"))
    watch.step(end("n1", "stopped", reason="hang"))
    found = ended(watch)
    assert (found.kind, found.last_step, watch.saved, watch.state) == ("hang", 41, 40, "failed")
    assert found.words == "node n0: rank 1 did no step for 30 s"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ({"state": "lost"}, "agent"),
        ({"state": "failed", "reason": "prepare", "code": 1}, "prepare"),
        ({"state": "failed", "reason": "prepare", "code": 2}, "config"),
        ({"state": "failed", "reason": "torchrun"}, "launcher"),
        ({"state": "failed", "reason": "agent: no space left"}, "start"),
        ({"state": "failed", "ranks": [{"rank": 0, "code": 78, "signal": 0, "at": 1.0}]}, "config"),
        ({"state": "failed", "ranks": [{"rank": 0, "code": 0, "signal": 9, "oom": True, "at": 1.0}]}, "oom"),
        ({"state": "stopped", "reason": "deadline"}, "deadline"),
        ({"state": "stopped", "reason": "budget"}, "budget"),
        ({"state": "stopped", "reason": "disconnected"}, "disconnected"),
        ({"state": "stopped", "reason": "stopped by the user"}, "stopped"),
        ({"state": "completed"}, "completed"),
    ],
)
def test_an_agents_last_status_gives_the_kind_of_end(status: dict[str, Any], kind: str) -> None:
    watch = begun("n0")
    watch.step(Ended("n0", {"ranks": [], **status}))
    assert ended(watch).kind == kind


def test_a_node_tells_of_its_own_ranks_alone() -> None:
    watch = AttemptState(("n0", "n1"), 1, {"n0": (0, 1), "n1": (2, 3)})
    for node in watch.nodes:
        watch.step(AgentEvent(node, {"event": "started", "at": 1.0, "attempt": 1, "version": VERSION}))
    watch.step(AgentEvent("n1", {"event": "progress", "at": 2.0, "steps": {"0": 99, "2": 5}, "saved": 7}))
    assert watch.steps == {2: 5} and watch.saved is None
    assert watch.step(AgentEvent("n1", {"event": "rank_exit", "at": 2.0, "rank": 0, "code": 1, "signal": 0})) == ""
    for at in (9.0, 5.0, 7.0):
        watch.step(AgentEvent("n1", {"event": "rank_exit", "at": at, "rank": 3, "code": 1, "signal": 0}))
    assert [(failure.rank, failure.at) for failure in watch.failures] == [(3, 5.0)]


def test_a_faulty_node_is_the_one_that_failed_and_is_still_swept() -> None:
    watch = AttemptState(("n0", "n1"))
    assert watch.step(Ended("n1", {"state": "faulty", "reason": "what it sends makes no sense"})) == Reason.FAILURE
    assert watch.step(Ended("n0", {"state": "running"})) == Reason.FAILURE  # says that it ended and that it goes on
    assert watch.done and watch.state == "failed"
    end = watch.end([], None, 0.0, 1.0)
    assert (end.kind, end.node) == ("node", "n1")


def test_a_setup_that_fails_names_its_line_and_is_not_tried_again() -> None:
    watch = begun("n0", "n1")
    words = "setup: line 2 of 3 (make): exit code 2"
    assert watch.step(end("n1", "failed", code=2, reason=words)) == Reason.FAILURE
    watch.stopping = Reason.FAILURE
    watch.step(end("n0", "stopped", reason=Reason.FAILURE))
    assert (ended(watch).kind, ended(watch).words) == ("config", f"node n1: {words}")
