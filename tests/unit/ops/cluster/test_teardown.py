"""A teardown that cannot prove that nothing is left says so, exits 4, and forgets nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nexa_dist.errors import EXIT_STILL_RUNNING, StillRunning
from nexa_dist.ops.cluster import mesh_end, teardown
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.stop import stop
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import Workspace


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
