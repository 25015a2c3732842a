"""What becomes of the nodes: by the end of the run and the cluster's file."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.model import End, Kind
from nexa_dist.ops.runs.end_policy import fate
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.plan.money.budget import OF_CLUSTER, OF_RUN

CONFIG: dict[str, Any] = {"name": "c", "provider": "aws"}


def outcome(state: str, kind: Kind, words: str = "", saved: int | None = None) -> Outcome:
    return Outcome(state, words, {}, End(kind, words), saved=saved)


@pytest.mark.parametrize(
    ("ended", "more", "bucket", "action"),
    [
        (outcome("completed", "completed"), {"on_failure": "teardown"}, "", "keep"),
        (outcome("stopped", "stopped"), {"on_failure": "teardown"}, "", "keep"),  # by the user, who may go on
        (outcome("failed", "rank"), {}, "", "keep"),
        (outcome("failed", "rank"), {"on_failure": "teardown"}, "", "teardown"),
        (outcome("failed", "rank"), {"on_failure": "keep 20m"}, "", "deadline"),
        (outcome("stopped", "budget", OF_CLUSTER), {}, "", "teardown"),
        (outcome("stopped", "budget", OF_CLUSTER), {"on_budget": "stop"}, "", "keep"),
        (outcome("stopped", "budget", OF_RUN, saved=40), {}, "s3://b/c", "teardown"),
        (outcome("stopped", "budget", OF_RUN, saved=40), {}, "", "keep"),  # the checkpoint would go with the nodes
        (outcome("stopped", "budget", OF_RUN), {}, "", "teardown"),
    ],
)
def test_the_file_decides(ended: Outcome, more: dict[str, Any], bucket: str, action: str) -> None:
    assert fate(ended, CONFIG | more, bucket).action == action


def test_nodes_of_your_own_are_never_touched() -> None:
    assert fate(outcome("stopped", "budget", OF_CLUSTER), {}, "").action == "keep"


def test_so_many_minutes() -> None:
    assert fate(outcome("failed", "rank"), CONFIG | {"on_failure": "keep 20m"}, "").minutes == 20.0
