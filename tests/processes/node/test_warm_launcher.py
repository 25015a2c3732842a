"""`launcher: direct`: ranks without torchrun, with real processes and no torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from nexa_dist.node.rank import FLIGHT_FILES
from nexa_dist.node.warm import client as warm_client
from nexa_dist.node.warm import launcher as warm_launcher
from tests.processes.node.ranks import Node
from tests.processes.node.rig import until


@pytest.fixture
def node(tmp_path: Path, agent_file: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr("nexa_dist.node.warm.client.agent_path", lambda: str(agent_file))
    return Node(tmp_path, agent_file)


def finish(ranks: warm_launcher.Direct) -> int:
    until(lambda: ranks.poll() is not None)
    assert ranks.returncode is not None
    return ranks.returncode


def test_ranks_get_the_environment_that_torchrun_gives(node: Node) -> None:
    script = node.script("import json, os; print(json.dumps(dict(os.environ)))")
    with node.start(script, world=4, nproc=2, first_rank=2, node_rank=1, nnodes=2) as ranks:
        assert finish(ranks) == 0
    for local, number in enumerate((2, 3)):
        seen = json.loads(node.log(number))
        added = {k: v for k, v in seen.items() if k not in node.environment and not k.startswith("NEXA_")}
        added.pop("LC_CTYPE", None)
        assert added == {
            "RANK": str(number),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": "4",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "1",
            "GROUP_WORLD_SIZE": "2",
            "ROLE_NAME": "default",
            "ROLE_RANK": str(number),
            "ROLE_WORLD_SIZE": "4",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
            "TORCHELASTIC_RUN_ID": "r-1",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
            "TORCHELASTIC_ERROR_FILE": f"{node.run_dir}/rank_{number}/error.attempt_1.json",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            **dict.fromkeys(FLIGHT_FILES, f"{node.run_dir}/rank_{number}/flight_"),
        }
        assert seen["NEXA_PROGRESS"] == f"{node.run_dir}/rank_{number}/progress.json"
    names = ("rank_exit", 2, 0), ("rank_exit", 3, 0), ("rank_start", 2, 0), ("rank_start", 3, 0)
    assert node.events("rank_start", "rank_exit") == list(names)


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("raise ValueError", 1)]
)
def test_one_rank_that_fails_ends_the_others(node: Node, end: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_launcher, "LAST_S", 60.0)
    script = node.script(f"""
import os, signal, sys, time
open("up" + os.environ["RANK"], "w").close()
while not os.path.exists("up0") or not os.path.exists("up2"):
    time.sleep(0.005)
if os.environ["RANK"] == "1":
    {end}
time.sleep(600)
""")
    with node.start(script, world=3) as ranks:
        assert finish(ranks) == code
    assert {rank: got for _, rank, got in node.events("rank_exit")} == {0: -15, 1: code if code < 128 else -9, 2: -15}


def test_a_rank_that_ignores_sigterm_is_killed_beside_one_that_failed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_launcher, "LAST_S", 0.1)
    script = node.script("""
import os, signal, sys, time
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("deaf", "w").close()
    time.sleep(600)
while not os.path.exists("deaf"):
    time.sleep(0.01)
sys.exit(3)
""")
    with node.start(script, world=2) as ranks:
        assert finish(ranks) == 3
        assert node.alive() == []


def test_a_stop_leaves_a_rank_its_time_when_another_has_gone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_launcher, "LAST_S", 0.0)
    script = node.script("""
import os, signal, sys, time
def save(*_):
    if os.environ["RANK"] == "0":
        while not os.path.exists("other is gone"):
            time.sleep(0.01)
        print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open("ready" + os.environ["RANK"], "w").close()
time.sleep(600)
""")
    with node.start(script, world=2) as ranks:
        until(lambda: (node.work / "ready0").exists() and (node.work / "ready1").exists())
        ranks.terminate()
        until(lambda: ranks.poll() is None and node.events("rank_exit") == [("rank_exit", 1, 143)])
        for _ in range(5):
            assert ranks.poll() is None
        (node.work / "other is gone").touch()
        assert finish(ranks) == 143
    assert node.log(0) == "saved\n"


def test_ranks_die_with_the_agent(node: Node) -> None:
    with node.held(node.script("import time; time.sleep(600)"), world=2) as agent:
        until(lambda: len(node.events("rank_start")) == 2)
        os.kill(agent, signal.SIGKILL)
        until(lambda: node.alive() == [])


def test_a_program_that_is_not_there_is_named(node: Node) -> None:
    spec = node.spec(node.script(""), world=1)
    spec["argv"] = ["/nonexistent/python", "x.py"]
    with node.begin(spec) as ranks:
        assert finish(ranks) == 127
    assert "/nonexistent/python" in (node.run_dir / "torchrun.log").read_text()


def test_a_rank_that_ended_before_it_was_seen_as_did_its_interpreter_has_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    here, there = socket.socketpair()
    with here, there:
        there.sendall(json.dumps({"pids": [gone.pid]}).encode() + b"\n")
        there.close()
        here.setblocking(False)
        monkeypatch.setattr(warm_client, "fork", lambda *_: warm_client.Ranks(str(node.run_dir), here, 90.0))
        with node.start("x.py", keep_warm=True) as ranks:
            assert finish(ranks) == 137


def test_an_attempt_that_is_over_starts_nothing(node: Node) -> None:
    (node.run_dir / "generation").write_text("2")
    with node.start(node.script("open('ran', 'w')"), attempt=1) as ranks:
        assert finish(ranks) == 78
    assert not (node.work / "ran").exists()
