"""What is asked of `nexa run` is done or refused, never dropped."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from nexa_dist import cli
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import RunFolder, Workspace
from nexa_dist.verbs._shared import Shown
from nexa_dist.verbs.cluster import provision as cluster
from nexa_dist.verbs.run.begin import resume
from tests.unit import records

CLUSTER = Cluster("c", "static", (Node("n0", "198.51.100.1", 1),), Layout("p", "s", "s", "d"))


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> argparse.Namespace:
    found: list[argparse.Namespace] = []
    monkeypatch.setattr(cli, "_call", lambda arguments: found.append(arguments) or 0)
    monkeypatch.setattr(cli, "hear", lambda verb: None)
    assert cli.main(words) == 0
    return found[0]


def test_what_stands_after_the_dashes_is_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parsed(monkeypatch, "run", "t.yaml", "--detach", "--", "--lr", "3e-4", "--", "--detach")
    assert (args.train, args.detach, args.program) == ("t.yaml", True, ["--lr", "3e-4", "--", "--detach"])
    assert parsed(monkeypatch, "run", "t.yaml", "--set", "a=b").program == []
    assert parsed(monkeypatch, "ssh", "n0", "--", "ls", "-l").command[-2:] == ["ls", "-l"]
    args = parsed(monkeypatch, "run", "--resume", "r", "t.yaml", "--set", "args.1=60", "--", "x")
    assert (args.resume, args.train, args.set, args.program) == ("r", "t.yaml", ["args.1=60"], ["x"])


class Run:
    """A run whose newest attempt is over, or not."""

    def __init__(self, root: Path, state: str = "completed") -> None:
        (root / "train.py").write_text("pass\n")
        self.said: list[str] = []
        self.ctx = Context(Workspace(root), Runner(), self.said.append)
        self.folder = RunFolder(root / "runs" / "train_20261122_200000_mine")
        self.folder.path.mkdir(parents=True)
        config = TrainConfig.model_validate({"name": "mine", "script": "train.py", "args": ["--steps", "30"]})
        attempt = {"attempt": 1, "state": state, "started_unix": 1.0, "world_size": 1, "rdzv": "x:1"}
        self.record = records.put(self.folder, {
            "run_id": self.folder.run_id, "cluster": CLUSTER.to_json(), "config": config.model_dump(mode="json"),
            "nodes": {}, "attempts": [attempt],
        })  # fmt: skip

    def asked(self, *words: str) -> tuple[TrainConfig, list[str]]:
        return resume._as_asked(self.ctx, self.folder, self.record, arguments(*words))


def arguments(*words: str) -> argparse.Namespace:
    at = words.index("--") if "--" in words else len(words)
    args = cli.parser().parse_args(["run", "--resume", "x", *words[:at]])
    args.program = list(words[at + 1 :])
    return args


def test_a_resume_changes_what_it_is_asked_to_and_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config, changed = run.asked("--set", 'args.1="60"', "--set", "max_hours=2", "--", "--lr", "3e-4")
    assert (config.args, config.max_hours) == (("--steps", "60", "--lr", "3e-4"), 2.0)
    assert sorted(changed) == ["args: --steps 30 → --steps 60 --lr 3e-4", "max_hours: not set → 2.0"]
    assert [line.partition(": ")[0] for line in run.said] == ["changed since attempt 1"] * 2
    assert run.asked() == (TrainConfig.model_validate(run.record.config), [])


def test_a_resume_takes_another_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    file = tmp_path / "other.yaml"
    file.write_text("script: train.py\nargs: [--steps, '90']\nwandb: off\n")
    config, changed = run.asked(str(file), "--set", "args+=x")
    assert (config.name, config.args) == ("mine", ("--steps", "90", "x"))
    assert changed[0] == "args: --steps 30 → --steps 90 x"


@pytest.mark.parametrize(
    "words",
    [("--set", "name=x"), ("--set", "args.7=x"), ("--set", "arg.0=x"), ("--set", "on_disconnect=kill", "--detach")],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(NexaError):
        Run(tmp_path).asked(*words)


def test_a_run_stays_on_its_cluster(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "d.yaml").write_text("cluster: [{host: 198.51.100.7, gpus: 1}]\n")
    with pytest.raises(UsageError, match="is a run of cluster c, not of d"):
        resume._where(run.ctx, run.record, str(tmp_path / "d.yaml"))
    (tmp_path / "c.yaml").write_text("cluster: [{host: 198.51.100.7, gpus: 1}]\n")
    assert resume._where(run.ctx, run.record, str(tmp_path / "c.yaml")).nodes[0].address == "198.51.100.7"
    assert resume._where(run.ctx, run.record, None) == CLUSTER


@pytest.mark.parametrize("words", [("--set", "args.1=60"), ("t.yaml",), ("--", "x"), ("--cluster", "c"), ("--print",)])
def test_a_run_that_goes_on_is_not_changed_under_its_ranks(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = Run(tmp_path, "running")
    with pytest.raises(UsageError, match=r"goes on, so .* could not be heeded"):
        resume.resumed(run.ctx, run.folder, arguments(*words), Shown(None))


def test_a_saved_plan_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "context", lambda **_: None)
    args = cli.parser().parse_args(["provision", "--plan", "p", "--set", "nodes=3"])
    with pytest.raises(UsageError, match="could not be heeded"):
        cluster.provision(args)
