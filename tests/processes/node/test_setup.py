"""What a run sets up on a node before its ranks: lines of the shell, and a layer with the project itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node import setup
from nexa_dist.node.code import tree
from tests.processes.node.rig import Rig, until

PYPROJECT = """
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"
[project]
name = "lab"
version = "1.5"
dependencies = ["pydantic", "no-such-lab>=2; python_version >= '3'", "no-such-other; extra == 'dev'"]
[project.scripts]
lab-train = "lab.cli:main"
"""
INSTALL = 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "extra.py").touch()'


def told(rig: Rig, *lines: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"apt": [], "lines": lines, "key": "k1", "layer_key": "l1", "python": sys.executable}
    made |= {"layer": str(rig.folder / "layer"), "shared": str(rig.folder.parent / "shared")}
    return {**made, "requires": None, "program": None, "must": True, **more}


def code(folder: Path, **texts: str) -> str:
    made = folder / "made"
    for name, text in texts.items():
        path = made / name.replace("__", "/").replace("_py", ".py").replace("_toml", ".toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(made.rename(folder / tree.digest(tree.read(str(made)))))


def log(rig: Rig, attempt: int = 1) -> str:
    return (rig.folder / f"setup.attempt_{attempt}.log").read_text()


def test_lines_run_once_for_a_run_and_what_they_made_is_copied_for_the_next(
    rig: Rig, agent_file: Path, tmp_path: Path
) -> None:
    rig.folder = tmp_path / "train_1"
    count, rank = tmp_path / "count", "print(open('made/it').read().strip())"
    lines = [f"echo ran >> {count}", "mkdir -p made/empty; cd made", "python -c 'print(6 * 7)' > it", "exit 0", "false"]
    rig.start(rank, world=1, setup=told(rig, *lines))
    assert rig.ended()["state"] == "completed", log(rig)
    assert (rig.log().read_text(), log(rig).splitlines()[:2]) == ("42\n", [f"+ {lines[0]}", f"+ {lines[1]}"])
    rig.start(rank, world=1, attempt=2, setup=told(rig, *lines))
    assert rig.ended()["state"] == "completed"
    assert log(rig, 2) == ""

    other = Rig(tmp_path / "train_2", agent_file)
    other.start(rank, world=1, setup=told(other, *lines))
    assert other.ended()["state"] == "completed"
    assert other.log().read_text() == "42\n"
    assert log(other).splitlines() == [
        "nexa: installed before on this node, by train_1",
        "nexa: done before on this node, by train_1: 3 files copied",
    ]
    assert (other.folder / "work" / "made" / "empty").is_dir()
    assert count.read_text() == "ran\n"
    for one in (rig, other):
        (one.folder / "work" / "made" / "it").write_text("changed by the training")
    third = Rig(tmp_path / "train_3", agent_file)
    third.start(rank, world=1, setup=told(third, *lines))
    assert third.ended()["state"] == "completed"
    assert (third.log().read_text(), count.read_text()) == ("42\n", "ran\nran\n")


@pytest.mark.parametrize("line", ['ln -s "$PWD/../data" corpus', 'echo "root: $PWD" > corpus.yaml'])
def test_what_names_its_run_is_made_anew_for_the_next(rig: Rig, agent_file: Path, tmp_path: Path, line: str) -> None:
    rig.folder = tmp_path / "train_1"
    rig.start("pass", world=1, setup=told(rig, line))
    assert rig.ended()["state"] == "completed", log(rig)
    other = Rig(tmp_path / "train_2", agent_file)
    other.start("pass", world=1, setup=told(other, line))
    assert other.ended()["state"] == "completed", log(other)
    assert f"+ {line}" in log(other)


def test_a_setup_that_was_killed_is_taken_for_done_by_nobody(rig: Rig, agent_file: Path, tmp_path: Path) -> None:
    rig.folder, gate = tmp_path / "train_1", tmp_path / "gate"
    lines = ["mkdir made; echo half > made/it", f"until [ -e {gate} ]; do sleep 0.05; done", "echo whole > made/it"]
    lines[0] = f"rm -rf made; {lines[0]}"
    rig.start("pass", world=1, setup=told(rig, *lines))
    until((rig.folder / "work" / "made" / "it").exists)
    os.kill(rig.agent_pid(), signal.SIGKILL)
    assert rig.stop()["left"] == [], "the line ended with its agent"
    gate.touch()
    other = Rig(tmp_path / "train_2", agent_file)
    for one, attempt in ((other, 1), (rig, 2)):
        one.start("print(open('made/it').read())", world=1, attempt=attempt, setup=told(one, *lines))
        assert one.ended()["state"] == "completed", log(one, attempt)
        assert log(one, attempt).count("+ echo whole") == (one is other), "done, or taken from the one that was whole"
        assert one.log(attempt=attempt).read_text().strip() == "whole"


def test_a_line_that_fails_is_named_and_no_rank_starts(rig: Rig) -> None:
    rig.start("print('ran')", go=False, setup=told(rig, "true", "cat nothing | tee copy", "touch after"))
    status = rig.ended()
    assert (status["state"], status["code"]) == ("failed", 1)
    assert status["reason"] == "setup: line 2 of 3 (cat nothing | tee copy): exit code 1"
    assert "nothing: No such file" in log(rig)
    assert not list(rig.folder.glob("rank_*"))
    assert not (rig.folder / "work" / "after").exists()


def test_a_project_with_a_src_folder_is_installed_editable_in_a_layer(rig: Rig, tmp_path: Path) -> None:
    cli = "import importlib.metadata as m\ndef main(): print(m.version('lab'), __file__)"
    made = code(tmp_path, pyproject_toml=PYPROJECT, src__lab__cli_py=cli)
    wanted = told(rig, "lab-train > said", key="k2", requires=["setuptools>=64"], program="lab-train")
    bins = [str(rig.folder / "layer" / "bin")]
    rig.start("print(1)", world=1, code=made, setup=wanted, path=bins)
    assert rig.ended()["state"] == "completed", log(rig)
    work = rig.folder / "work"
    assert (work / "said").read_text() == f"1.5 {work / 'src' / 'lab' / 'cli.py'}\n"
    assert 'lab wants what the environment does not have: environment: {packages: ["no-such-lab>=2"]}' in log(rig)
    assert "no-such-other" not in log(rig)
    run = [bins[0] + "/python", "-m", "nexa_dist.train.console_script", "lab-train"]
    done = subprocess.run(run, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True, text=True)
    assert done.stdout.startswith("1.5 "), done.stderr

    wanted["program"] = "lab-trian"
    wanted["layer_key"] = "l2"
    rig.start("print(1)", world=1, attempt=2, code=made, setup=wanted, path=bins)
    reason = "setup: program: lab-trian is no console script; the project's are: lab-train"
    assert (rig.ended()["code"], rig.ended()["reason"]) == (2, reason)


@pytest.mark.parametrize(
    ("code", "there", "ran"),
    [
        (0, ["a"], ["apt-get -q -o DPkg::Lock::Timeout=300 update", "install -y --no-install-recommends b=1"]),
        (0, ["a", "b=1"], []),
    ],
)
def test_packages_that_are_there_are_not_asked_for(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, there: list[str], ran: list[str]
) -> None:
    said = tmp_path / "said"
    for name, text in {
        "dpkg-query": f'for last; do :; done; case "$last" in {"|".join(there)}) printf installed;; *) exit 1;; esac',
        "apt-get": f'echo "apt-get $*" >> {said}; exit {code}',
        "sudo": 'shift; exec "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    what = {"cwd": str(tmp_path), "setup": told(rig, apt=["a", "b=1"], layer="")}
    setup.Setup(str(rig.folder), what).all()
    lines = said.read_text().splitlines() if said.exists() else []
    assert len(lines) == len(ran)
    assert all(line.endswith(end) for line, end in zip(lines, ran, strict=True))
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    if ran:
        with pytest.raises(setup.Failed, match="apt: apt-get update: exit code 100"):
            setup.Setup(str(rig.folder), what).all()


def test_a_layer_goes_on_to_the_next_run_with_what_lines_installed(rig: Rig, agent_file: Path, tmp_path: Path) -> None:
    made = code(tmp_path, pyproject_toml=PYPROJECT, src__lab__cli_py="def main(): print(__file__)")
    counted = tmp_path / "count"
    lines = [f"echo ran >> {counted}", f"python -c '{INSTALL}'"]
    for name in ("train_1", "train_2"):
        rig = Rig(tmp_path / name, agent_file)
        wanted = told(rig, *lines, requires=["setuptools>=64"])
        rig.start("print(1)", world=1, code=made, setup=wanted)
        assert rig.ended()["state"] == "completed", log(rig)
        shown = subprocess.check_output([rig.folder / "layer" / "bin" / "lab-train"], text=True)
        assert shown == f"{rig.folder / 'work' / 'src' / 'lab' / 'cli.py'}\n"
        subprocess.check_call([rig.folder / "layer" / "bin" / "python", "-c", "import extra, pydantic"])
    note = (rig.folder / "layer" / "nexa.json").stat()
    rig.start("print(1)", world=1, attempt=2, code=made, setup=wanted)
    assert rig.ended()["state"] == "completed"
    assert (log(rig, 2), (rig.folder / "layer" / "nexa.json").stat()) == ("", note)
    assert counted.read_text() == "ran\n"
    assert "installed before on this node, by train_1" in log(rig)
    assert (
        setup.Setup(str(tmp_path / "train_3"), {"cwd": "", "setup": wanted}).usable(str(rig.folder), "k1") is not None
    )
    for damaged in ('"text"', "{}", '{"key": "l1", "files": 3}', "{"):
        (tmp_path / "train_1" / "layer" / "nexa.json").write_text(damaged)
        assert (
            setup.Setup(str(tmp_path / "x"), {"cwd": "", "setup": wanted}).usable(str(tmp_path / "train_1"), "") is None
        )
    (rig.folder / "layer" / "new").touch()
    assert setup.Setup(str(tmp_path / "train_3"), {"cwd": "", "setup": wanted}).usable(str(rig.folder), "k1") is None


@pytest.mark.parametrize(("must", "state"), [(True, "failed"), (False, "completed")])
def test_a_project_that_cannot_be_built_says_what_is_missing(rig: Rig, tmp_path: Path, must: bool, state: str) -> None:
    made = code(tmp_path, pyproject_toml=PYPROJECT.replace("setuptools>=64", "no-such-builder"))
    wanted = told(rig, requires=["no-such-builder"], must=must)
    rig.start("print('ran')", world=1, code=made, setup=wanted, env={"UV_OFFLINE": "1"})
    assert rig.ended()["state"] == state
    assert 'environment: {packages: ["no-such-builder"]}, or install: false' in log(rig)
    assert rig.log().exists() is not must
    assert setup.Setup(str(tmp_path / "next"), {"cwd": "", "setup": wanted}).usable(str(rig.folder), "") is None


def test_the_ranks_of_a_layer_are_forked_from_its_interpreter(rig: Rig) -> None:
    rig.folder.parent.joinpath("train.py").write_text("import extra; print(extra.__file__)")
    python = str(rig.folder / "layer" / "bin" / "python")
    spec = rig.spec(
        "", world=1, launcher="direct", argv=[python, "-u", str(rig.folder.parent / "train.py")], first_rank=0, nproc=1,
        world_size=1, node_rank=0, nnodes=1, master_addr="127.0.0.1", master_port=9, preload=["json"], keep_warm=True,
        setup=told(rig, f"python -c '{INSTALL}'"), env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rig.call("start", str(rig.folder), message={"spec": spec, "secrets": {}, "go": True})
    assert rig.ended()["state"] == "completed", log(rig)
    assert rig.log().read_text().startswith(str(rig.folder / "layer"))
    assert [event["warm"] for event in rig.events("rank_start")] == [True]
