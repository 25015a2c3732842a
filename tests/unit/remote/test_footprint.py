"""What is added to somebody's machine is taken away again, and nothing else is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nexa_dist.remote import footprint
from tests.begun import begun

RUN, FOREIGN = "train_20261123_060336_who", "train_20261122_000000_theirs"
ENV, AGENT, CODE, DATA = "a939bd936108870b", "38a96d64ef624ef7", "c24a8d0c0b8db0c4", "0123456789abcdef"
NAMES = {"runs": [RUN], "envs": [ENV], "agent": [AGENT], "code": [CODE]}


def tree(root: Path) -> dict[str, str]:
    """Every path below `root`, with what it holds."""
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


class Machine:
    """A home, and a cluster's claim on it."""

    def __init__(self, home: Path, ident: str = "ws.c.n0", **folders: str) -> None:
        base = {kind: f"~/.nexa/{kind}" for kind in ("scratch", "shared", "durable")}
        self.folders = footprint.absolute({**base, **folders}, str(home))
        found = {
            "missing": footprint.look({"folders": {**base, **folders}})["missing"],
            "before": footprint.before(self.folders),
        }
        self.claim = {"id": ident, "folders": self.folders, **found}

    def path(self, kind: str, *names: str) -> Path:
        return Path(self.folders[kind], *names)

    def used(self) -> None:
        """As after a bootstrap and a run."""
        assert footprint.claim(self.claim) == {"changed": True}
        shared = self.path("shared")
        put(shared / "envs" / ENV / "bin" / "python", shared / "envs" / f"{ENV}.lock", shared / "uv-0.13.9" / "uv")
        put(shared / "agent" / AGENT / "agent.pyz", shared / "code" / CODE / "a.py", shared / "uv-cache" / "x")
        put(self.path("scratch", RUN, "spec.json"))

    def release(self) -> dict[str, Any]:
        return footprint.release({**self.claim, "names": NAMES})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "it's a home"
    put(made / "thesis.tex")
    monkeypatch.setenv("HOME", str(made))
    return made


def test_an_empty_home_is_as_it_was(home: Path) -> None:
    before = tree(home)
    machine = Machine(home)
    assert tree(home) == before, "looking changes nothing"
    machine.used()
    assert machine.path("shared").stat().st_mode & 0o777 == 0o700
    answer = machine.release()
    assert tree(home) == before
    assert (answer["stays"], answer["processes"]) == ([], [])
    assert machine.release()["removed"] == []


def test_what_was_there_stays_with_what_is_in_it(home: Path) -> None:
    shared, scratch = home / "caches", home / "fast"
    put(shared / "envs" / ENV / "bin" / "python", shared / "uv-cache" / "theirs", scratch / FOREIGN / "spec.json")
    machine = Machine(home, shared=str(shared), scratch=str(scratch))
    before = tree(home)
    machine.used()
    os.unlink(shared / "uv-cache" / "x")  # of a cache that was there all of it stays
    put(shared / "code" / DATA / "of-somebody.py", shared / "data" / DATA / "tokens", scratch / "notes.txt")
    machine.release()
    left = {path: text for path, text in tree(home).items() if path not in before}
    assert set(left) - {"caches/code", "caches/data", f"caches/code/{DATA}", f"caches/data/{DATA}"} == {
        f"caches/code/{DATA}/of-somebody.py", f"caches/data/{DATA}/tokens", "fast/notes.txt"
    }  # fmt: skip
    assert before.items() <= tree(home).items()


def test_checkpoints_and_the_users_own_files_stay_and_are_named(home: Path) -> None:
    machine = Machine(home)
    machine.used()
    put(machine.path("durable", RUN, "step_40", "model.safetensors"), machine.path("scratch", "mine"))
    machine.path("durable", "empty").mkdir()
    stays = machine.release()["stays"]
    assert [(row["path"], row["files"], row["why"]) for row in stays] == [
        (machine.folders["scratch"], 1, "not added by this cluster"),
        (machine.folders["durable"], 1, "checkpoints are never deleted"),
    ]
    assert not machine.path("durable", "empty").exists()
    assert sorted(tree(home / ".nexa")) == [
        "durable", f"durable/{RUN}", f"durable/{RUN}/step_40", f"durable/{RUN}/step_40/model.safetensors",
        "scratch", "scratch/mine",
    ]  # fmt: skip


def test_what_two_clusters_share_goes_with_the_last(home: Path) -> None:
    before = tree(home)
    first = Machine(home)
    first.used()
    second = Machine(home, ident="ws.other.n0")
    assert footprint.claim(second.claim)["changed"]
    answer = first.release()
    assert answer["removed"] == [first.folders["scratch"] + "/" + RUN]
    assert [row["why"] for row in answer["stays"]] == ["in use by ws.other.n0"]
    assert second.path("shared", "envs", ENV).exists() and second.path("scratch").exists()
    second.release()
    assert tree(home) == before


def test_a_node_that_shares_a_folder_with_another_machine_cleans_its_own(home: Path) -> None:
    """The claim of n1, on another machine, names the same paths: of these only `shared` is the same folder."""
    first, second = Machine(home), Machine(home, ident="ws.c.n1")
    first.used()
    footprint.claim(second.claim)
    path = first.path("shared", footprint.CLAIMS, "ws.c.n1.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another"}))
    first.release()
    assert not first.path("scratch").exists() and not first.path("durable").exists()
    assert first.path("shared", "envs", ENV).exists()


def test_a_first_claim_is_kept(home: Path) -> None:
    before = tree(home)
    machine = Machine(home)
    machine.used()
    again = Machine(home)
    assert footprint.claim(again.claim) == {"changed": False}
    assert again.release()["processes"] == []
    assert tree(home) == before


def test_nothing_is_removed_while_something_uses_it(home: Path) -> None:
    machine = Machine(home)
    machine.used()
    agent = machine.path("shared", "agent", AGENT, "agent.pyz")
    with begun([sys.executable, "-c", "input()", str(agent)], stdin=subprocess.PIPE) as process:
        before = tree(home)
        answer = machine.release()
        assert answer == {"removed": [], "stays": [], "processes": [process.pid]}
        assert tree(home) == before
        process.communicate()
    assert machine.release()["processes"] == []


def test_a_provision_that_was_killed_before_the_claim(home: Path) -> None:
    before = tree(home)
    machine = Machine(home)
    machine.path("scratch").mkdir(parents=True)
    assert machine.release()["removed"] == [machine.folders["scratch"], str(home / ".nexa")]
    assert tree(home) == before


def test_a_folder_that_is_none_is_a_fault(home: Path) -> None:
    faults = footprint.look({"folders": {"scratch": "~/thesis.tex/x", "shared": "/s", "durable": "~/d"}})["faults"]
    assert [f"{home}/thesis.tex is not a folder"] == [fault for fault in faults if "thesis" in fault]


@pytest.mark.parametrize(
    ("flag", "free_gb", "inodes", "there", "said"),
    [
        (0, 50, 10**6, False, ""),
        (os.ST_NOEXEC, 50, 10**6, False, "{} is mounted noexec"),
        (os.ST_NOEXEC, 50, 10**6, True, "{} is mounted noexec"),
        (0, 1, 10**6, False, "{} has 1.0 GB free, and the environment needs"),
        (0, 1, 10, True, ""),  # what is there needs no room
        (0, 50, 10, False, "{} has inodes for 10 files"),
        (0, 50, 0, False, ""),  # btrfs counts none
    ],
)
def test_a_place_where_no_environment_can_lie_is_a_fault(
    home: Path, monkeypatch: pytest.MonkeyPatch, flag: int, free_gb: int, inodes: int, there: bool, said: str
) -> None:
    told = SimpleNamespace(
        f_flag=flag, f_bavail=free_gb * 10**6, f_frsize=1000, f_files=inodes and 10**7, f_favail=inodes
    )
    asked: list[str] = []
    monkeypatch.setattr(footprint.os, "statvfs", lambda path: asked.append(path) or told)
    if there:
        (home / "h" / "envs" / ENV).mkdir(parents=True)
    faults = footprint.look({"folders": {"scratch": "~/s", "shared": "~/h", "durable": "~/d"}})["faults"]
    place = str(home / "h" if there else home)
    assert asked == [place]
    assert len(faults) == bool(said) and all(fault.startswith(said.format(place)) for fault in faults)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_a_fault(home: Path) -> None:
    home.chmod(0o500)
    faults = footprint.look({"folders": {"scratch": "~/s", "shared": "~/h", "durable": "~/d"}})["faults"]
    home.chmod(0o700)
    assert all(f"cannot write to {home}" in fault for fault in faults) and len(faults) == 3
