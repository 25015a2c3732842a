"""A teardown stops the runs first. One that cannot prove that nothing is left says so, exits 4, and forgets nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import EXIT_STILL_RUNNING, StillRunning
from nexa_dist.ops.cluster import mesh_end, teardown
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.stop import stop
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import RunFolder, Workspace


@pytest.mark.parametrize("kind", ["cloud", "errors", "processes"])
def test_what_is_left_is_told(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = Context(Workspace(tmp_path), Runner(), lambda _: None)
    folder = ctx.workspace.cluster("c")
    folder.path.mkdir(parents=True)
    monkeypatch.setattr(teardown, "_left_mesh", lambda *_: mesh_end.Left())
    monkeypatch.setattr(teardown, "_destroyed", lambda *_: {"left": {"resources": [], kind: ["i-1 running"]}})
    with pytest.raises(StillRunning, match="i-1 running") as caught:
        teardown.teardown(ctx, folder, None, stop)
    assert caught.value.code == EXIT_STILL_RUNNING == 4
    assert json.loads((folder.path / "receipt.json").read_text())["left"][kind] == ["i-1 running"]


def test_runs_are_stopped_before_their_nodes_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = Context(Workspace(tmp_path), Runner(), lambda _: None)
    folder, order = ctx.workspace.cluster("c"), list[str]()
    folder.path.mkdir(parents=True)

    def destroyed(*_: object) -> dict[str, Any]:
        order.append("destroyed")
        return {"left": {"cloud": ["i-1"]}}

    monkeypatch.setattr(teardown, "active_runs", lambda *_: [RunFolder(tmp_path / "runs" / "r1")])
    monkeypatch.setattr(teardown, "_left_mesh", lambda *_: mesh_end.Left())
    monkeypatch.setattr(teardown, "_destroyed", destroyed)
    with pytest.raises(StillRunning):
        teardown.teardown(ctx, folder, None, lambda _, run: order.append(run.run_id))
    assert order == ["r1", "destroyed"]
