"""A model as a run: its command, its environment, and what is believed of the node that serves it."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.cli import main
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.serving import served, tunnel
from nexa_dist.ops.serving.aliases import Aliases, made
from nexa_dist.ops.serving.served import STATE, Model, Wish, as_run
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.runner import Result
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import RunFolder, Workspace
from nexa_dist.shape import Strange
from nexa_dist.train.checkpoint import digest, manifest_bytes
from nexa_dist.verbs.work.serve import refuse_open
from nexa_dist.wire import Faulty
from tests.unit.cloud_server import Desk

NODES = (Node("n0", "10.0.0.1", 4), Node("n1", "10.0.0.2", 4))
LAB = Cluster("lab", "aws", NODES, Layout("python3", "~/s", "~/h", "~/d"))
MODEL = Model(Path("/runs/r1/checkpoints/step_00000040"), "tiny", "train_1_tiny", 40)


def test_a_served_model_is_a_run_of_one_process_on_one_node() -> None:
    config = as_run(Wish("r1", node="n1", max_hours=2.0, key_env="SERVE_KEY", host="0.0.0.0"), MODEL, LAB)
    assert (config.stage, config.nodes, config.nproc_per_node, config.max_hours) == ("serve", ("n1",), 1, 2.0)
    assert config.module == served.HOLD
    assert config.environment == "infer"
    assert config.secrets == ("SERVE_KEY",)
    assert config.data == {"model": "/runs/r1/checkpoints/step_00000040"}
    assert config.hang_timeout_s is None
    words = " ".join(config.args)
    assert words.startswith("--model ${NEXA_DATA}/model --name tiny --engine auto --host 0.0.0.0")
    assert "--key-env SERVE_KEY" in words


def test_where_there_is_no_gpu_it_needs_no_other_environment() -> None:
    assert as_run(Wish("r1"), MODEL, replace(LAB, provider="local")).environment == "light"
    assert as_run(Wish("r1", engine="transformers"), MODEL, LAB).environment == "light"


@pytest.mark.parametrize(
    "wish", [{"max_hours": -1.0}, {"budget_usd": float("nan")}, {"key_env": "AWS_SECRET_ACCESS_KEY"}]
)
def test_a_wish_that_no_run_can_have_is_said_in_a_line(wish: Any) -> None:
    with pytest.raises(UsageError, match=r"max_hours|budget_usd|secrets"):
        as_run(Wish("r1", **wish), MODEL, LAB)


def test_an_open_address_is_refused_without_a_key() -> None:
    refuse_open(Wish("r"))
    refuse_open(Wish("r", host="0.0.0.0", key_env="K"))
    with pytest.raises(UsageError, match="can be reached by others"):
        refuse_open(Wish("r", host="10.0.0.1"))


@pytest.mark.parametrize(
    "told",
    [
        {"state": "fine", "at": 1.0},
        {"state": "ready", "at": 1.0, "port": 0},
        {"state": "ready", "at": 1.0, "host": "x -oProxyCommand=y"},
        {"state": "ready", "at": 1.0, "requests": -1},
        [],
    ],
)
def test_a_state_that_makes_no_sense_is_no_state(told: Any) -> None:
    with pytest.raises(Strange):
        STATE(told)


def test_a_port_that_is_taken_is_said_before_anything_is_started() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 99_999):
            with pytest.raises(UsageError, match="cannot be had"):
                tunnel._free(port)


@pytest.mark.parametrize("missing", ["host", "port", "model", "api", "smoke"])
def test_a_server_that_is_ready_says_where(missing: str) -> None:
    told = {"state": "ready", "at": 1.0, "host": "127.0.0.1", "port": 8000, "model": "m", "api": "chat",
            "smoke": {"text": "hi", "seconds": 1.0}}  # fmt: skip
    for rest in (told, {name: value for name, value in told.items() if name != missing}):
        link = Link(Ssh(FakeRunner(Result((), 0, json.dumps(rest).encode(), b"")), LAB, ""), NODES[0], "/home/x")
        if rest is told:
            assert served.state_of(link, "/run") == told
        else:
            with pytest.raises(Faulty, match=f"ready without {missing}"):
                served.state_of(link, "/run")


def test_the_way_to_a_server_ends_with_its_run_also_where_nobody_answers_any_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "POLL_S", 0.001)
    gone = FakeRunner(otherwise=Result((), 255, b"", b"no route to host"))
    link, looks = Link(Ssh(gone, LAB, ""), NODES[0], "/home/x"), [True, True, False]
    with tunnel.Door(desk.ctx, tunnel.Tunnel(desk.ctx, 0), "", lambda _: None) as door:
        door.open(link, "/run")
        door.wait(lambda: looks.pop(0))
    assert looks == []


def test_a_name_is_of_the_very_checkpoint_that_was_promoted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = desk.ctx.workspace.root / "step_00000004"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "manifest.json").write_bytes(manifest_bytes({"version": 1, "step": 4, "files": {}}))
    run = RunFolder(desk.ctx.workspace.root / "runs" / "train_1_a_tiny")
    monkeypatch.setattr(Workspace, "run", lambda self, named: run)
    monkeypatch.setattr(served, "_checkpoint", lambda ctx, run, step: (folder, 4))
    names = Aliases(desk.ctx.workspace.root)
    names.give(made("production", run.run_id, 4, digest(folder), why="promote"))
    assert served.find_model(desk.ctx, Wish("production")).sha256 == digest(folder)
    (folder / "manifest.json").write_bytes(manifest_bytes({"version": 1, "step": 4, "files": {"a": {}}}))
    with pytest.raises(NexaError, match="production is step 4 of train_1_a_tiny as"):
        served.find_model(desk.ctx, Wish("production"))
    assert served.find_model(desk.ctx, Wish(run.run_id)).step == 4, "by its own name it can be served"


def test_scores_of_the_newest_checkpoint_promote_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert main(["promote", "r1", "--to", "staging", "--min", "dss=0.5", "--checkpoint", "2"]) == 2
    told = capsys.readouterr().err
    assert "nobody says that the scores of r1 are of step 2" in told and "--eval FILE" in told


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_key_that_is_not_there_is_missed_before_anything_is_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert main(["serve", "r1", "--key-env", "NOSUCH_KEY", *more]) == 2
    assert "error: --key-env: the variable NOSUCH_KEY is neither in the environment nor in " in capsys.readouterr().err
