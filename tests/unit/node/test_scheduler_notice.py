"""The notice of a scheduler, as the agent finds it: in the file of the node's holder, or as a signal before that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nexa_dist.node.oslib import inherited
from nexa_dist.node.protocol import Reason
from nexa_dist.node.watch import watcher as watching
from nexa_dist.node.watch.scheduler import Scheduler


@pytest.fixture
def notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "notice.json"
    path.write_text(json.dumps({"kill_wait_s": 40}))
    monkeypatch.setenv("NEXA_NOTICE", str(path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    return path


def watcher(run_dir: Path) -> watching.Watcher:
    run_dir.mkdir()
    return watching.Watcher(str(run_dir), {"attempt": 1, "grace_s": 25.0, "notice_grace_s": 90.0, "nproc": 1}, {})


def test_the_file_is_read_once_it_says_when(notice: Path, tmp_path: Path) -> None:
    made = watcher(tmp_path / "run")
    assert made.look(1.0) == ""
    notice.write_text(json.dumps({"kill_wait_s": 40, "action": "Slurm preempts the job", "at_unix": 4_000_000_000}))
    assert made.look(2.0) == Reason.NOTICE
    assert made.look(3.0) == ""
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "agent.jsonl").read_text().splitlines()]
    assert (row["event"], row["action"], row["at_unix"]) == ("notice", "Slurm preempts the job", 4_000_000_000)
    assert made.grace_s == 90.0


def test_a_signal_that_comes_first_leaves_kill_wait(notice: Path, tmp_path: Path) -> None:
    made = watcher(tmp_path / "run")
    assert made.scheduler
    told = made.scheduler.signalled()
    assert told["at_unix"] == int(told["seen_unix"] + 40) or told["at_unix"] == int(told["seen_unix"] + 40) - 1
    assert made.give_notice(told) == made.give_notice(told) == Reason.NOTICE
    assert made.grace_s is not None and 20 < made.grace_s <= 25, "KillWait less what the end takes"


def test_a_torn_file_is_no_notice_and_without_a_scheduler_there_is_none(
    notice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice.write_text("{")
    assert Scheduler(str(notice)).look() is None
    assert inherited([])["CUDA_VISIBLE_DEVICES"] == "2,3", "the ranks' share of the node"
    monkeypatch.delenv("NEXA_NOTICE")
    assert Scheduler.here() is None
    assert "CUDA_VISIBLE_DEVICES" not in inherited([])
