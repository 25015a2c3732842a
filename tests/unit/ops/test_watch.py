"""What one watcher decides from what the nodes report: no node, no time, no ssh."""

from __future__ import annotations

from typing import Any

from nexa_dist.ops.watch import FAILURE, LOST_AFTER_S, Watch
from nexa_dist.run.follow import AgentEvent, Ended, Quiet


def event(node: str, name: str, **fields: Any) -> AgentEvent:
    return AgentEvent(node, {"event": name, "at": fields.pop("at", 1.0), **fields})


def end(node: str, state: str, **more: Any) -> Ended:
    return Ended(node, {"state": state, "ranks": [], **more})


def begun(*nodes: str, attempt: int = 1) -> Watch:
    watch = Watch(nodes, attempt)
    for node in nodes:
        assert watch.step(event(node, "started", attempt=attempt)) == ""
    return watch


def test_what_an_earlier_attempt_left_is_not_of_this_one() -> None:
    watch = Watch(("n0",), attempt=2)
    old = [("started", {"attempt": 1}), ("prepared", {}), ("rank_exit", {"rank": 0, "code": 1, "signal": 0})]
    for name, fields in old:
        assert watch.step(event("n0", name, **fields)) == ""
    assert watch.failures == []
    watch.step(event("n0", "started", attempt=2))
    assert watch.step(event("n0", "prepared")) == "go"


def test_go_only_when_every_node_is_prepared() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n1", "prepared")) == ""
    assert watch.step(event("n0", "prepared")) == "go"


def test_the_first_rank_that_failed_is_named_and_the_others_are_stopped_once() -> None:
    watch = begun("n0", "n1")
    assert watch.step(event("n1", "rank_exit", rank=3, code=1, signal=0, at=20.5)) == "stop"
    watch.stopping = FAILURE
    assert watch.step(event("n0", "rank_exit", rank=1, code=0, signal=9, at=20.1)) == ""
    assert watch.step(event("n0", "rank_exit", rank=0, code=0, signal=15, at=21.0)) == ""
    watch.step(end("n0", "stopped", reason=FAILURE))
    assert not watch.done
    watch.step(end("n1", "failed", reason="torchrun"))
    assert (watch.done, watch.state) == (True, "failed")
    assert watch.first_failure == (20.1, "n0", 1, "signal 9")


def test_all_completed() -> None:
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


def test_a_silent_node_is_given_up_after_a_while_only() -> None:
    watch = begun("n0", "n1")
    assert watch.step(Quiet("n1", LOST_AFTER_S - 1)) == ""
    assert watch.step(Quiet("n1", LOST_AFTER_S + 1)) == "stop"
    assert watch.ends["n1"]["state"] == "unreachable"
    assert watch.first_failure is not None
    assert watch.first_failure[1] == "n1"


def test_an_attach_after_the_failure_still_learns_which_rank_it_was() -> None:
    watch = begun("n0")
    ranks = [{"rank": 1, "code": 7, "signal": 0, "at": 3.0}, {"rank": 0, "code": 0, "signal": 15, "at": 4.0}]
    assert watch.step(end("n0", "failed", reason="torchrun", ranks=ranks)) == "stop"
    assert watch.first_failure == (3.0, "n0", 1, "exit code 7")
