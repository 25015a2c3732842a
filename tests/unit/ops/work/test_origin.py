"""A run that is to be had again: what there is of it, and what is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.load import changed_train, recorded_train
from nexa_dist.errors import UsageError
from nexa_dist.ops.work import origin
from nexa_dist.ops.work.origin import Origin
from nexa_dist.run import files
from nexa_dist.run.code import archive
from nexa_dist.run.workspace import RunFolder
from tests.unit import records
from tests.unit.cloud_server import Desk

RUN = "train_20260101_000000_x"
LAB = replace(records.CLUSTER, env_hash="e" * 16)


class Past:
    """A run that was, of the script train.py and the data corpus.txt."""

    def __init__(self, desk: Desk, **config: Any) -> None:
        self.desk, self.root = desk, desk.root
        (self.root / "train.py").write_text("print(1)\n")
        (self.root / "corpus.txt").write_text("a b c\n")
        self.run = RunFolder(self.root / "runs" / RUN)
        self.config = {"name": "x", "script": "train.py", "data": {"corpus": "corpus.txt"}, **config}
        project, package = archive.project(desk.ctx.runner, self.root), archive.package()
        for code in (project, package):
            archive.keep(self.run.code, code)
        ident = origin.datasets.read_now(desk.ctx, "corpus", "corpus.txt").id
        self.data = {"corpus": {"source": "corpus.txt", "id": ident, "bytes": 6, "files": 1, "single": "corpus.txt"}}
        files.write_json(self.run.brought / "environment.json", {"asked": {}, "freeze": ["a==1"]})
        attempt = {"attempt": 1, "state": "completed", "started_unix": 1.0, "ended_unix": 2.0, "world_size": 1,
                   "rdzv": "x:1"}  # fmt: skip
        records.put(
            self.run,
            {"cluster": LAB.to_json(), "config": self.config, "nodes": {}, "attempts": [attempt], "run_id": RUN,
             "code_hash": project.hash, "package_hash": package.hash, "data": self.data, "git_commit": "c0ffee",
             "environment": {"name": "light", "hash": LAB.env_hash}},
        )  # fmt: skip
        self.project = project

    def found(self, *changes: str, cluster: Any = LAB) -> Origin:
        config = changed_train(self.config, RUN, changes) if changes else recorded_train(self.config, RUN)
        return origin.find(self.desk.ctx, self.run, config, cluster, list(changes))

    def states(self, *changes: str, **more: Any) -> dict[str, str]:
        return {part.name: part.state for part in self.found(*changes, **more).parts}


def test_an_edit_since_changes_nothing(desk: Desk) -> None:
    past = Past(desk)
    (past.root / "train.py").write_text("print(2)\n")
    found = past.found()
    assert {part.state for part in found.parts} == {"same"}
    assert archive.look(found.codes[0], "train.py")[1] == b"print(1)\n" and found.codes[0].hash == past.project.hash
    assert found.told() == {"run": RUN, "differs": [], "changed": []}


def test_code_whose_archive_is_gone_is_taken_from_here_if_it_is_the_same_and_refused_else(desk: Desk) -> None:
    past = Past(desk)
    for kept in past.run.code.iterdir():
        kept.unlink()
    assert past.states()["code"] == "same"
    (past.root / "train.py").write_text("print(2)\n")
    with pytest.raises(UsageError, match=r"cannot be had again:\ncode: the archive .* git checkout c0ffee has it"):
        past.found()


def test_what_is_otherwise_now_is_named(desk: Desk) -> None:
    past = Past(desk)
    (past.root / "corpus.txt").write_text("another\n")
    wide = replace(LAB, env_hash="f" * 16, nodes=(replace(LAB.nodes[0], gpus=4),))
    found = past.found(cluster=wide)
    assert [part.name for part in found.of("differs")] == ["environment", "ranks"]
    assert [str(part) for part in found.of("unsure")] == [
        "data corpus: corpus.txt is not what it was: a node may still have that"
    ]
    assert "ranks: 1 then, 4 now" in found.told()["differs"]


def test_a_new_run_gets_what_was_brought_and_what_was_changed_as_it_is_now(desk: Desk, tmp_path: Path) -> None:
    past = Past(desk)
    brought = tmp_path / "brought"
    past.found().seed(brought)
    assert files.read_object(brought / "data.json") == past.data
    assert files.read_object(brought / "environment.json")["freeze"] == ["a==1"]
    changed = tmp_path / "changed"
    (past.root / "other.txt").write_text("x")
    past.found("data.corpus=other.txt", "environment=none").seed(changed)
    assert not changed.exists()
    assert past.states("environment=none")["environment"] == "same"


def test_an_environment_of_ones_own_needs_what_it_was_made_from(desk: Desk) -> None:
    past = Past(desk, environment={"packages": ["einops"]})
    assert past.states()["environment"] == "unsure"
    (past.run.brought / "environment.json").write_text("{")
    with pytest.raises(UsageError, match=r"what .* was made from is damaged: cannot read"):
        past.found()
    (past.run.brought / "environment.json").unlink()
    with pytest.raises(UsageError, match="no longer beside the run"):
        past.found()
