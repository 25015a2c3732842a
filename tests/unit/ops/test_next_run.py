"""What is loaded ahead for the next run of a queue is what its launch asks for, or nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.ops import next_run
from nexa_dist.ops.queue import Queue
from nexa_dist.ops.work.bring import Brought
from nexa_dist.run.code import archive
from nexa_dist.run.workspace import ClusterFolder, RunFolder
from tests.unit.ops.runs.test_launch import Nodes, Trial

HASHED = Brought(environment={"name": "light", "hash": "e1"})


def config(**more: object) -> TrainConfig:
    return TrainConfig.model_validate({"name": "t", "script": "train.py", "launcher": "direct", **more})


def test_the_interpreter_is_the_one_that_the_launch_will_ask_for(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(), launcher="direct", env={"OMP_NUM_THREADS": "3"})
    prepared = dataclasses.replace(trial.prepare(), brought=HASHED)
    launched = trial.nodes.told("probe")
    trial.nodes.asked.clear()
    next_run.load(next_run.Ready("q2", RunFolder(tmp_path / "runs" / "r"), prepared.links), trial.config, prepared)
    ahead = trial.nodes.told("probe")
    assert {name: message["warm"] for name, message in ahead.items()} == {
        name: {**message["warm"], "after": prepared.places[name].run_dir} for name, message in launched.items()
    }


@pytest.mark.parametrize(("pyproject", "brought"), [("", Brought()), ("[build-system]\nrequires = []\n", HASHED)])
def test_nothing_is_loaded_that_may_change_or_is_yet_to_be_made(
    tmp_path: Path, pyproject: str, brought: Brought
) -> None:
    trial = Trial(tmp_path, Nodes(), launcher="direct")
    prepared = dataclasses.replace(trial.prepare(), brought=brought)
    if pyproject:
        (tmp_path / "pyproject.toml").write_text(pyproject)
        code = archive.build(tmp_path, ["train.py", "pyproject.toml"])
        prepared = dataclasses.replace(prepared, archives=(code, code))
    trial.nodes.asked.clear()
    next_run.load(next_run.Ready("q2", RunFolder(tmp_path / "runs" / "r"), prepared.links), trial.config, prepared)
    assert trial.nodes.asked == []


def test_what_was_made_ready_goes_unless_it_was_begun(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(), launcher="direct")
    links = trial.prepare().links
    queue = Queue(ClusterFolder(tmp_path / ".nexa" / "clusters" / "c"))
    for begun in (True, False):
        folder = RunFolder(tmp_path / "runs" / f"train_{begun}")
        folder.path.mkdir(parents=True)
        if begun:
            folder.json.write_text("{}")
        trial.nodes.asked.clear()
        next_run.Ready("q2", folder, links).forget(queue)
        assert folder.path.exists() is begun
        assert [act for _, act, _ in trial.nodes.asked] == ([] if begun else ["forget"] * len(links))


def test_what_another_run_was_given_is_not_taken_for_ones_own() -> None:
    assert next_run.alike(config(), config(args=["--seed", "1"], name="other"))
    for more in ({"nodes": ["n1"]}, {"secrets": ["MY_KEY"]}, {"environment": {"packages": ["einops"]}}):
        assert not next_run.alike(config(), config(**more))
        assert next_run.alike(config(**more), config(**more))
    assert not next_run.alike(config(environment="none"), config(environment="none"))
    assert not next_run.alike(config(), config(launcher="torchrun"))
