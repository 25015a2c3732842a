"""Which checkpoint a new attempt goes on from, with stand-ins for what the nodes answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import checkpoints
from nexa_dist.run.record import Run
from nexa_dist.run.runner import SystemRunner
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import Workspace


def test_the_newest_whole_checkpoint_goes_to_every_node_and_damage_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tuple(Node(f"n{index}", f"127.0.0.{index + 1}", 1) for index in range(3))
    cluster = Cluster("c", "local", nodes, Layout("python3", "/s", "/h", "/d"), "ssh_config")
    links = [Link(Ssh(SystemRunner(), cluster, tmp_path), node, "/home") for node in nodes]
    answers: dict[str, Any] = {
        "n0": {"whole": [{"step": 20, "path": "/s/20"}], "skipped": [{"path": "/s/40", "why": "torn"}]},
        "n1": {"whole": [{"step": 10, "path": "/s/10"}, {"step": 30, "path": "/s/30"}], "skipped": []},
        "n2": {"whole": [], "skipped": []},
    }
    monkeypatch.setattr(checkpoints, "send", lambda *_: None)
    monkeypatch.setattr(checkpoints, "_root", lambda *_: "/s")
    monkeypatch.setattr(checkpoints, "_durable", lambda *_: "/d")
    monkeypatch.setattr(checkpoints, "_verified", lambda link, *_: answers[link.node.name])
    monkeypatch.setattr(checkpoints, "_copy", lambda source, path, *_: f"{path} of {source.node.name}")
    said: list[str] = []
    ctx = Context(Workspace(tmp_path), SystemRunner(), said.append)
    found = checkpoints.spread_checkpoint(ctx, links, Run(cluster, {}, {}, [], "r"))
    assert found == (30, {"n0": "/s/30 of n1", "n1": "/s/30", "n2": "/s/30 of n1"})
    assert "warning: n0: /s/40 is passed over: torn" in said
