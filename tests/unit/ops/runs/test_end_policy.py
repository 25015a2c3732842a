"""What becomes of the nodes: by the end of the run and the cluster's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nexa_dist.model import End, Kind
from nexa_dist.ops.cluster import teardown
from nexa_dist.ops.context import Context
from nexa_dist.ops.queue import Queue, Row, add, remove
from nexa_dist.ops.runs.end_policy import carry_out, fate
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.plan.money.budget import OF_CLUSTER, OF_RUN
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.workspace import Workspace
from tests import small_workspace

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


@pytest.mark.parametrize("words, kept", [("", True), (OF_CLUSTER, False)])
def test_nodes_that_others_use_or_wait_for_are_not_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, kept: bool
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "w").mkdir()
    ctx = Context(Workspace(small_workspace.make(tmp_path / "w")), FakeRunner(), lambda text: None)
    folder = ctx.workspace.cluster("lab")
    (folder.path / "config.json").write_text('{"on_failure": "teardown"}')
    ended = outcome("stopped", "budget", words) if words else outcome("failed", "rank")
    gone = list[str]()
    monkeypatch.setattr(teardown, "teardown", lambda *_: gone.append("lab") or {"cost_usd": None})
    with Queue(folder).changing() as queued:
        add(queued, [Row("", str(tmp_path), {}, "t.yaml")])
    found = carry_out(ctx, folder.load(), ended)
    assert (found.action == "keep", gone == []) == (kept, kept)
    with Queue(folder).changing() as queued:
        remove(queued, ["q1"])
    run = ctx.workspace.run(small_workspace.RUN)
    run.json.write_text(run.json.read_text().replace('"stop"', '"restart"'))  # another run, that goes on
    found = carry_out(ctx, folder.load(), ended)
    assert (found.action == "keep", small_workspace.RUN in found.why) == (kept, kept)
    run.json.write_text(run.json.read_text().replace('"restart"', '"stop"'))
    assert carry_out(ctx, folder.load(), ended).action == "teardown"


def test_on_failure_keep_20m_keeps_the_nodes_for_20_minutes() -> None:
    assert fate(outcome("failed", "rank"), CONFIG | {"on_failure": "keep 20m"}, "").minutes == 20.0
