"""Which checkpoint a new attempt goes on from, with stand-ins for what the nodes answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import checkpoints
from nexa_dist.run.record import Run
from nexa_dist.run.runner import Result, Runner
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import Workspace
from nexa_dist.train.shards.cover import Part


class Rig:
    """Three nodes, what each answers of its checkpoints, and what is done and said."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nodes = tuple(Node(f"n{index}", f"127.0.0.{index + 1}", 1) for index in range(3))
        cluster = Cluster("c", "local", nodes, Layout("python3", "/s", "/h", "/d"), "ssh_config")
        self.links = [Link(Ssh(Runner(), cluster, folder), node, "/home") for node in nodes]
        self.record = Run(cluster, {}, {}, [], "r")
        self.answers: dict[str, Any] = {node.name: {"whole": [], "skipped": []} for node in nodes}
        self.said: list[str] = []
        self.moved: list[tuple[str, str, str]] = []
        self.ctx = Context(Workspace(folder), Runner(), self.said.append)
        monkeypatch.setattr(checkpoints, "send", lambda *_: None)
        monkeypatch.setattr(checkpoints, "_root", lambda *_: "/s")
        monkeypatch.setattr(checkpoints, "_durable", lambda *_: "/d")
        monkeypatch.setattr(checkpoints, "_verified", lambda link, *_: self.answers[link.node.name])
        monkeypatch.setattr(checkpoints, "_copy", lambda source, path, *_: f"{path} of {source.node.name}")

    def spread(self, to: list[int] | None = None) -> tuple[int, dict[str, str]] | None:
        takers = None if to is None else [self.links[number] for number in to]
        return checkpoints.spread_checkpoint(self.ctx, self.links, self.record, takers)

    def holds(self, node: int, step: int, *has: int, digest: str = "d") -> None:
        row = Part(digest * 64, 1, 6, frozenset(has)).row()
        self.answers[f"n{node}"]["whole"].append({"step": step, "path": f"/s/step_{step:08d}", "shards": row})


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_the_newest_whole_checkpoint_goes_to_every_node_and_damage_is_told(rig: Rig) -> None:
    rig.answers |= {
        "n0": {"whole": [{"step": 20, "path": "/s/20"}], "skipped": [{"path": "/s/40", "why": "torn"}]},
        "n1": {"whole": [{"step": 10, "path": "/s/10"}, {"step": 30, "path": "/s/30"}], "skipped": []},
    }
    assert rig.spread() == (30, {"n0": "/s/30 of n1", "n1": "/s/30", "n2": "/s/30 of n1"})
    assert "warning: n0: /s/40 is passed over: torn" in rig.said


def test_of_sharded_checkpoints_the_newest_that_the_nodes_hold_together_is_named_and_not_copied(rig: Rig) -> None:
    for node in range(3):
        rig.holds(node, 20, 2 * node, 2 * node + 1)
    rig.holds(0, 40, 0, 1)
    rig.holds(1, 40, 2, 3, digest="e")
    places = {f"n{node}": "/s/step_00000020" for node in range(3)}
    assert rig.spread() == (20, places)
    assert any("step 40 is passed over: its shards are of 2 saves, and none is whole" in line for line in rig.said)
    rig.holds(1, 40, 2, 3, 4, 5)  # the same path says another thing now
    assert rig.spread() == (
        40,
        {**places, "n0": "/s/step_00000040", "n1": "/s/step_00000040", "n2": "/s/step_00000040"},
    )


def test_a_node_made_anew_has_its_place_and_what_is_nowhere_is_walked_back_over(rig: Rig) -> None:
    rig.holds(0, 40, 0, 1, 4, 5)
    rig.holds(1, 40, 2, 3, 0, 1)  # n2's files are on n0 too
    assert rig.spread() == (40, {f"n{node}": "/s/step_00000040" for node in range(3)})
    rig.answers["n0"]["whole"].clear()
    assert rig.spread() is None
    assert "warning: the checkpoint of step 40 is passed over: 2 of its 6 files are on no node" in rig.said
    rig.answers["n1"]["whole"].append({"step": 10, "path": "/s/10"})
    found = rig.spread()
    assert found is not None and found[0] == 10


def test_what_only_leaving_nodes_hold_goes_to_one_that_stays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[tuple[str, ...]] = []

    def run(self: Ssh, node: Node, argv: tuple[str, ...], *_: object, **__: object) -> Result:
        joined.append((node.name, *argv[-3:]))
        return Result(argv, 0)

    monkeypatch.setattr(Ssh, "run", run)
    monkeypatch.setattr(checkpoints, "_stream", lambda source, path, to, aside: joined.append((source.node.name, path)))
    monkeypatch.setattr(checkpoints, "code_folder", lambda *_: "/code")
    for node in range(3):
        rig.holds(node, 20, 2 * node, 2 * node + 1)
    assert rig.spread(to=[0, 1]) == (20, {"n0": "/s/step_00000020", "n1": "/s/step_00000020"})
    aside = f"{rig.links[0].run_dir('r')}/shards/step_00000020"
    assert joined == [("n2", "/s/step_00000020"), ("n0", "nexa_dist.train.shards.join", aside, "/s")]
    joined.clear()
    rig.holds(1, 40, 0, 1, 2, 3, 4, 5)
    assert rig.spread(to=[0, 1]) == (40, {"n0": "/s/step_00000040", "n1": "/s/step_00000040"})
    assert joined == [], "those that stay have it all"
