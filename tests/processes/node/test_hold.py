"""The command `hold`: an attempt in the foreground of a scheduler's step, which signals every process of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node.protocol import VERSION
from tests.processes.node.rig import REPORT, Rig, until

SAVING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("ready", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def held(rig: Rig, rank_code: str, tmp_path: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The agent as the task of node 1, in a group of processes of its own."""
    spec = rig.spec(rank_code, notice_grace_s=30, peers=[str(tmp_path / "peer")], **more)
    told = {"run_dir": str(rig.folder), "spec": spec, "secrets": ["HF_TOKEN", "NOT_THERE"]}
    (tmp_path / "1.json").write_text(json.dumps(told))
    env = {**os.environ, "SLURM_NODEID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "17", "HF_TOKEN": "canary-123"}
    child = subprocess.Popen([*rig.argv, "hold", str(tmp_path)], env=env, start_new_session=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


DIRECT = {
    "launcher": "direct", "argv": [sys.executable, "-u", "-c", SAVING], "first_rank": 0, "nproc": 2, "world_size": 2,
    "node_rank": 0, "nnodes": 1, "master_addr": "127.0.0.1", "master_port": 9,
}  # fmt: skip


@pytest.mark.parametrize("more", [{}, DIRECT], ids=["torchrun", "direct"])
def test_a_signal_to_every_process_lets_the_ranks_save_in_their_time(
    rig: Rig, tmp_path: Path, more: dict[str, Any]
) -> None:
    with held(rig, SAVING, tmp_path, **more) as agent:
        rig.ready(0, 1)
        launcher = next(event["pid"] for event in rig.events("torchrun"))
        for pid in (launcher, agent.pid):  # without a handler of its own a launcher would die, and its ranks with it
            os.kill(pid, signal.SIGTERM)
        assert agent.wait(90) == 0, "its end is written, so no other agent is to be killed for it"
    (end,) = rig.events("ended")
    assert (end["state"], end["reason"], end["left"]) == ("stopped", "notice of the scheduler", [])
    assert {event["grace_s"] for event in rig.events("stopping")} == {30}
    assert ["saved" in rig.log(rank).read_text() for rank in (0, 1)] == [True, True]


def test_a_rank_that_failed_on_another_node_ends_ours(rig: Rig, tmp_path: Path) -> None:
    peer = tmp_path / "peer"
    peer.mkdir()
    (peer / "generation").write_text("1")
    with held(rig, "print('ready', flush=True)\nimport time; time.sleep(600)", tmp_path) as agent:
        rig.ready(0, 1)
        rows = [
            {"event": "started", "at": 1.0, "attempt": 1, "version": VERSION},
            {"event": "rank_exit", "at": 2.0, "rank": 5, "code": 1, "signal": 0},
        ]
        (peer / "agent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert agent.wait(90) == 0
    (end,) = rig.events("ended")
    assert (end["state"], end["reason"]) == ("stopped", "another rank or node failed")


def test_what_ends_by_itself_has_secrets_its_job_and_no_other_word_of_slurms(rig: Rig, tmp_path: Path) -> None:
    code = REPORT + "print(os.environ['HF_TOKEN'], sorted(name for name in os.environ if name.startswith('SLURM')))"
    with held(rig, code, tmp_path, world=1) as agent:
        assert agent.wait(90) == 0
    assert rig.log(0).read_text().split("\n")[0] == "canary-123 ['SLURM_JOB_ID']"
    assert [event["state"] for event in rig.events("ended")] == ["completed"]
    written = [path for path in rig.folder.rglob("*") if path.is_file() and not path.match("rank_*/*.log")]
    assert [path for path in written if b"canary-123" in path.read_bytes()] == []


@pytest.mark.parametrize("text", ["", "[", "{}"])
def test_a_file_that_makes_no_sense_begins_nothing(rig: Rig, tmp_path: Path, text: str) -> None:
    (tmp_path / "0.json").write_text(text)
    made = subprocess.run([*rig.argv, "hold", str(tmp_path)], capture_output=True, text=True, timeout=90, check=False)
    assert made.returncode == 1
    assert "cannot be read" in made.stdout
    assert not (rig.folder / "agent.jsonl").exists()


def test_an_attempt_is_held_once(rig: Rig, tmp_path: Path) -> None:
    with held(rig, "pass", tmp_path, world=1) as agent:
        assert agent.wait(90) == 0
    before = rig.events()
    with held(rig, "pass", tmp_path, world=1) as again:
        assert again.wait(90) == 1
    until(lambda: rig.events() == before)
