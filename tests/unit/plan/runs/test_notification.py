"""Messages about a run: what a person needs, and keys that are the same whoever makes them."""

from __future__ import annotations

from nexa_dist.model import Decision
from nexa_dist.plan.money.budget import OF_CLUSTER, OF_RUN, Budget
from nexa_dist.plan.runs.notification import NEAR_S, Subject, near, notice_key

ABOUT = Subject("train_x", "lab", 2, 0.123456, 1_800_000_000.0)


def test_each_end_has_the_command_that_comes_next() -> None:
    assert ABOUT.ended("completed", "", "").next == "nexa pull train_x"
    assert ABOUT.ended("failed", "rank 1 on n0: exit code 1", "oom").next == "nexa why train_x"
    assert ABOUT.ended("stopped", "deadline", "").next == "nexa run --resume train_x"
    assert ABOUT.ended("completed", "", "").text == "train_x has completed"


def test_a_failed_attempt_says_what_is_done_about_it() -> None:
    message = ABOUT.failed("rank 1 on n0: exit code 1", "oom", Decision("restart"))
    told = message.to_json()
    assert told["text"] == "train_x: attempt 2 failed: rank 1 on n0: exit code 1; next: restart"
    assert (told["why"], told["usd"], told["id"]) == ("oom", 0.1235, "train_x/attempt_failed:2")


def test_a_warning_of_each_share_of_each_budget_is_another_message() -> None:
    small, large = Budget(10.0, 5.0, 1.0), Budget(20.0, 16.0, 1.0)
    keys = {ABOUT.budget(*row, "words").key for row in ((small, 0.5), (small, 0.8), (large, 0.8))}
    assert len(keys) == 3
    assert ABOUT.budget(small, 0.5, "w").next == "nexa budget extend USD --cluster lab" and small.what == OF_CLUSTER
    assert ABOUT.budget(Budget(1.0, 0.5, 1.0, OF_RUN), 0.5, "w").next == "nexa stop train_x"


def test_a_notice_has_the_key_that_the_nodes_agent_gives_it() -> None:
    told = ABOUT.notice("n1", {"event": "notice", "at": 1.0, "at_unix": 1_800_000_120.4, "action": "terminate"})
    assert told.key == notice_key("n1", 1_800_000_120.4) == "notice:n1:1800000120"
    assert told.text == "train_x: n1 was given notice: terminate at 08:02 UTC"


def test_a_deadline_is_near_when_a_tenth_is_left_or_a_quarter_of_an_hour() -> None:
    assert near(600.0) == 60.0 and near(24 * 3600.0) == NEAR_S
    assert "ends it in 15 min (08:15 UTC)" in ABOUT.deadline("k", "max_hours", 1_800_000_900.0).text
