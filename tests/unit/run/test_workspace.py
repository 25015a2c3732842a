"""The workspace is found from below it, and a cluster of another one by its file or name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nexa_dist.cli import main
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.context import Context
from nexa_dist.run import trust
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import Workspace
from nexa_dist.verbs import _shared
from tests import small_workspace
from tests.unit import records

CLUSTER = {
    "name": "lab", "provider": "local", "layout": {"python": "p", "scratch": "s", "shared": "s", "durable": "d"},
    "nodes": [{"name": "n0", "address": "127.0.0.2", "gpus": 1}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("NEXA_WORKSPACE", raising=False)


def made(root: Path, name: str = "lab") -> Path:
    """A workspace of ours with a cluster and its file."""
    trust.claim(root)
    folder = root / ".nexa" / "clusters" / name
    folder.mkdir(parents=True)
    (folder / "cluster.json").write_text(json.dumps({**CLUSTER, "name": name}))
    (root / f"{name}.yaml").write_text(f"name: {name}\nprovider: local\nnodes: 1\ngpus_per_node: 1\n")
    return root


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def failed(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    assert main(argv) == code
    return capsys.readouterr().err


def test_it_is_the_nearest_from_here_upwards_and_never_beyond_the_repository(tmp_path: Path) -> None:
    outer, inner = made(folder(tmp_path / "w")), made(folder(tmp_path / "w" / "a" / "b"))
    below = folder(inner / "c" / "d")
    assert [Workspace.of(p).root for p in (below, inner, tmp_path / "w" / "a", outer)] == [inner, inner, outer, outer]
    assert (Workspace.of(below).above, Workspace.of(inner).above) == (True, False)
    assert str(Workspace.of(below)) == f"{inner} (the workspace above {below})"
    (outer / "a" / ".git").mkdir()  # another project: its code is not the outer one's
    assert Workspace.of(tmp_path / "w" / "a").root == outer / "a"
    (folder(tmp_path / "node") / ".nexa" / "shared").mkdir(parents=True)  # what provision adds to a host
    assert Workspace.of(tmp_path / "node").root == tmp_path / "node"
    assert not Workspace.of(folder(tmp_path / "node" / "sub")).above


def test_one_that_is_not_ours_is_refused_whatever_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("clusters/lab", "id"):
        root = tmp_path / name.partition("/")[0]
        (root / ".nexa" / name).mkdir(parents=True)
        (root / ".env").write_text("WANDB_PROJECT=theirs\n")
        monkeypatch.chdir(folder(root / "below"))
        said = failed(capsys, "teardown", "-y")
        assert f"{root}" in said and "was not made here by you" in said and "nexa trust" in said
        main(["runs"])
        assert "WANDB_PROJECT" not in os.environ and not (root / "runs").exists()


def test_who_looks_in_vain_is_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    below = folder(folder(tmp_path / "repo" / ".git").parent / "sub")
    monkeypatch.chdir(below)
    said = failed(capsys, "ssh", "n0")
    assert f"{below}, nor in a workspace above it (looked up to {tmp_path / 'repo'}, where the git" in said
    assert "NEXA_WORKSPACE=DIR" in said and "known elsewhere" not in said
    made(folder(tmp_path / "w"))
    assert f"known elsewhere: lab in {tmp_path / 'w'}" in failed(capsys, "ssh", "n0")
    assert "no cluster called 'other' is known" in failed(capsys, "ssh", "--cluster", "other", "n0")
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path / "nowhere"))
    assert "NEXA_WORKSPACE" in failed(capsys, "ssh", "n0")
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path / "w"))
    assert Workspace.here().only_cluster().name == "lab"


def test_a_cluster_of_another_project_by_its_file_and_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, here = made(folder(tmp_path / "other")), made(folder(tmp_path / "here"), "mine")
    monkeypatch.chdir(here)
    for named in ("../other/lab.yaml", "lab"):
        assert _shared.context(cluster=named).workspace.root == other
    for named in ("mine.yaml", "mine", None):
        assert _shared.context(cluster=named).workspace.root == here
    made(folder(tmp_path / "third"))
    with pytest.raises(UsageError, match=r"is known in .*other, .*third"):
        _shared.context(cluster="lab")


def test_a_cluster_that_several_borrowed_is_its_owners(tmp_path: Path) -> None:
    owner = Workspace(made(folder(tmp_path / "owner")))
    for name in ("a", "b"):
        Workspace(folder(tmp_path / name)).borrow("lab", owner)
    assert [one.root for one in Workspace(folder(tmp_path / "c")).others("lab")] == [owner.root]


def test_a_run_on_a_borrowed_cluster_is_seen_by_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, here = made(folder(tmp_path / "other")), folder(tmp_path / "here")
    monkeypatch.chdir(here)
    ctx = Context(Workspace.here(), Runner(), lambda _: None)
    for _ in range(2):
        _shared.borrowed(ctx, "../other/lab.yaml")
    assert ctx.workspace.only_cluster().load().name == "lab"
    assert ctx.workspace.cluster("lab").path == other / ".nexa" / "clusters" / "lab"
    run = ctx.workspace.new_run("train", "x")
    attempt = {"attempt": 1, "state": "running", "started_unix": 1.0, "world_size": 1, "rdzv": "x:1"}
    records.put(run, {"cluster": CLUSTER, "config": {}, "nodes": {}, "attempts": [attempt]})
    for root in (other, here):
        seen = active_runs(Context(Workspace(root), ctx.runner, lambda _: None), "lab")
        assert [found.path for found in seen] == [run.path]
    made(folder(tmp_path / "third"))
    with pytest.raises(UsageError, match="of its own"):
        _shared.borrowed(Context(Workspace(tmp_path / "third"), ctx.runner, lambda _: None), "../other/lab.yaml")


def test_git_never_takes_keys_states_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made(folder(tmp_path / "w"))
    Workspace(root).new_run("train", "x")
    hidden = [root / ".nexa" / ".gitignore", root / "runs" / ".gitignore"]
    assert [path.read_text() for path in hidden] == ["*\n", "*\n"]
    (root / "runs" / "train_1").mkdir()
    (root / "runs" / "train_1" / "run.json").write_text("{}")
    for path in hidden:
        path.unlink()  # a workspace of an older nexa
    Workspace(root).close_to_others()
    assert [path.read_text() for path in hidden] == ["*\n", "*\n"]
    hidden[1].write_text("/mine\n")
    Workspace(root).close_to_others()
    assert hidden[1].read_text() == "/mine\n"
    monkeypatch.chdir(folder(tmp_path / "new"))
    assert main(["init", "."]) == 0
    assert trust.is_ours(tmp_path / "new") and (tmp_path / "new" / ".nexa" / ".gitignore").read_text() == "*\n"


def test_a_cluster_is_read_as_it_was_written_or_said_to_be_damaged(tmp_path: Path) -> None:
    cluster = Workspace(small_workspace.make(tmp_path)).cluster(small_workspace.CLUSTER)
    known = cluster.load()
    assert known.nodes[0].gpus == 1 and known.nodes[0].price_usd_per_hour == 0.0 and known.rdzv_backend == "static"
    assert known == type(known).from_json(known.to_json())
    cluster.json.write_text(json.dumps({**known.to_json(), "provider": "mine"}))
    with pytest.raises(NexaError, match=r"cluster\.json is damaged: provider: 'mine' is none of aws, local, static"):
        cluster.load()
