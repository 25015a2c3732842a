"""Runs that go on after a fault, on a local cluster: attempts, a lost node, a lost controller."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.train import checkpoint
from tests.e2e.conftest import NO_TORCH, Lab, kill, runs, until

pytestmark = pytest.mark.e2e


def again(lab: Lab, fail_at: int, fail_until: int, steps: int = 12, hold: Path | None = None, **more: Any) -> str:
    """train.yaml of a rank a node, of which rank 1 raises at a step in its first attempts, and that may start again. At
    step 10 it waits for the file `hold`."""
    together = lab.root / ".nexa" / "together"  # which is no code, and so is not sent
    shutil.rmtree(together, ignore_errors=True)
    args = ["--fail-at", fail_at, "--fail-until", fail_until, "--steps", steps, "--together", together]
    args += ["--hold", hold] if hold else []
    return lab.plain("steps", *args, restarts_per_hour=10, nproc_per_node=1, **more)


def begun(lab: Lab, train: str) -> subprocess.Popen[str]:
    """A run whose ranks have begun."""
    before = runs(lab)
    child = lab.begin("run", train)
    until(lambda: runs(lab) > before and "attempt 1" in lab.log(1, "n1"), "the ranks began")
    return child


def ends(lab: Lab) -> list[tuple[str, str | None]]:
    return [(row["kind"], row["next"]) for row in lab.manifest()["attempts"]]


@pytest.mark.long("test_logs.py has a rank that fails and the attempt after it")
def test_a_rank_that_raises_once_costs_one_attempt(clean: Lab) -> None:
    said = clean.nexa("run", again(clean, 6, 1), "--rank", "1").stderr
    assert "attempt 1 ended: rank 1 on n1: exit code 1; next: restart" in said
    assert ends(clean) == [("rank", "restart"), ("completed", "done")]
    assert clean.manifest()["status"] == "completed"
    assert clean.manifest()["attempts"][0]["last_step"] == 6
    assert "attempt 2 rank 1" in clean.log(1, "n1", 2)


@pytest.mark.long("tests/processes/node/test_warm.py has the interpreter")
def test_ranks_without_torchrun_start_again_from_a_warm_interpreter(clean: Lab) -> None:
    hold = clean.root / "warm"
    child = begun(clean, again(clean, 11, 1, hold=hold, launcher="direct"))
    events = [clean.newest() / "logs" / node / "agent.jsonl" for node in ("n0", "n1")]
    until(lambda: all('"warm"' in path.read_text() for path in events), "an interpreter waits on each node")
    hold.touch()
    said = child.communicate(timeout=600)[1]
    assert child.returncode == 0, said
    assert ends(clean) == [("rank", "restart"), ("completed", "done")]
    assert "torch.distributed.run" not in str(clean.record()["attempts"][0]["commands"])
    assert "attempt 2 rank 1" in clean.log(1, "n1", 2)


@pytest.mark.long("tests/unit/plan/runs/test_recovery.py has the decision")
def test_what_falls_over_before_its_first_step_is_given_up_at_the_second_time(clean: Lab) -> None:
    raising = clean.script("raising", "raise SystemExit(3)", restarts_per_hour=10, **NO_TORCH)
    said = clean.nexa("run", raising, code=1).stderr
    assert "2 times in a row before its first step" in said
    assert [kind for kind, _ in ends(clean)] == ["rank", "rank"]
    usage = clean.script("usage", "raise SystemExit(2)", restarts_per_hour=10, **NO_TORCH)
    clean.nexa("run", usage, code=1)
    assert [kind for kind, _ in ends(clean)] == ["config"]


def test_an_attach_takes_over_from_a_killed_supervisor(clean: Lab) -> None:
    hold = clean.root / "killed"
    child = begun(clean, again(clean, 11, 1, hold=hold))
    kill(child.pid)
    child.wait()
    hold.touch()
    said = clean.nexa("attach", "--rank", "1").stderr
    assert "next: restart" in said
    assert ends(clean) == [("rank", "restart"), ("completed", "done")]


@pytest.mark.long("variant of the killed supervisor")
def test_a_killed_supervisor_between_two_attempts_is_followed_by_another(clean: Lab) -> None:
    hold = clean.root / "between"  # of the second attempt: the first one does not get as far
    child = begun(clean, again(clean, 6, 1, hold=hold))
    record = until(
        lambda: (found := clean.record())["attempts"] and (found["attempts"][0].get("next") or {}) and found,
        "the decision is written",
    )
    kill(child.pid)
    child.wait()
    hold.touch()
    assert record["attempts"][0]["next"]["action"] == "restart"
    clean.nexa("run", "--resume", clean.newest().name)
    assert ends(clean)[-1] == ("completed", "done")
    assert {number for number, _ in enumerate(ends(clean), 1)} <= {1, 2, 3}


@pytest.mark.long("variant of two commands at once")
def test_two_controllers_do_not_both_decide(clean: Lab) -> None:
    hold = clean.root / "go-on"
    child = begun(clean, again(clean, 0, 0, hold=hold))
    other = clean.begin("attach")
    assert other.stderr
    assert "supervised by another nexa: looking on" in other.stderr.readline()
    hold.touch()
    for command in (child, other):
        said = command.communicate(timeout=600)[1]
        assert command.returncode == 0, said
    assert len(clean.record()["attempts"]) == 1


SHARDED = """
import hashlib, os, sys, time
from dataclasses import replace
from pathlib import Path
from nexa_dist.train import control, progress
from nexa_dist.train.env import RankEnv
from nexa_dist.train.shard_keeper import ShardKeeper

env = replace(RankEnv.read("sharded", os.environ), durable=None)
control.join(env)
keeper = ShardKeeper(env)
point = keeper.start()
step, folder = point or (0, None)
mine = f"state_{env.rank}"
state = (folder / mine).read_bytes() if folder else b""
if folder:
    print("from step", step, sorted(path.name for path in folder.glob("state_*")), flush=True)
keeper.begin(step)
while step < 12:
    step += 1
    state = hashlib.sha256(state + f"{env.rank} {step}".encode()).digest()
    progress.report(step, 12)
    control.gather(step)
    if step % 4 == 0:
        keeper.save(step, lambda folder, now=state: (folder / mine).write_bytes(now), later=True)
    while step == 10 and env.attempt == 1 and not Path(sys.argv[1]).exists():
        keeper.settle()
        time.sleep(0.05)
saved = keeper.finish(step, None)
keeper.write_result({"checkpoint": saved}) if env.rank == 0 else None
print("ends with", state.hex(), flush=True)
control.leave()
"""


@pytest.mark.long(
    "tests/processes/train/test_shards.py has the ranks, tests/unit/ops/test_checkpoints.py the controller"
)
def test_a_lost_nodes_shards_come_from_the_replica_on_the_other(clean: Lab) -> None:
    hold = clean.root / "never"
    more = {"restarts_per_hour": 10, "nproc_per_node": 2, "replicas": 1, "args": [str(hold)]}
    child = clean.begin("run", clean.script("sharded", SHARDED, **more))
    homes = [clean.root / ".nexa" / "clusters" / "lab" / "nodes" / node for node in ("n0", "n1")]
    until(lambda: all(list(home.rglob("step_00000008/manifest.json")) for home in homes), "step 8 is on both", 200)
    while left := machine(clean, "n1"):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
    _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said
    assert clean.manifest()["attempts"][1]["replaced"] == ["n1"], said
    assert clean.manifest()["attempts"][1]["resume_step"] == 8
    assert clean.manifest()["checkpoint"]["step"] == 12
    for rank, node in ((0, "n0"), (1, "n0"), (2, "n1"), (3, "n1")):
        state = b""
        for number in range(1, 13):
            state = hashlib.sha256(state + f"{rank} {number}".encode()).digest()
        log = clean.log(rank, node, 2)
        assert "from step 8 ['state_0', 'state_1', 'state_2', 'state_3']" in log
        assert f"ends with {state.hex()}" in log
    assert "step 8: 4 files (0.0 MB) go to nodes that lack them" in clean.log(0, "n0", 2)
    told = clean.json("pull")["checkpoint"]
    assert told["step"] == 12 and checkpoint.verify(Path(told["path"])) == []
    assert set(checkpoint.names(Path(told["path"]))) == {"manifest.json", *(f"state_{rank}" for rank in range(4))}


def machine(lab: Lab, node: str) -> set[int]:
    """Pids of a node's machine: its sshd, sessions and everything in them."""
    folder = f"{lab.root}/.nexa/clusters/lab/nodes/{node}"
    mark, conf = f"NEXA_HOST={folder}".encode(), f"{folder}/".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (path / "cmdline").read_bytes()
            if mark in (path / "environ").read_bytes() or (b"sshd" in command and conf in command):
                found.add(int(path.name))
        except OSError:
            continue
    more = found
    while more:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
    return found - {os.getpid()}


def test_a_lost_node_is_made_anew_alone(clean: Lab) -> None:
    hold = clean.root / "lost"
    child = begun(clean, again(clean, 0, 0, hold=hold, launcher="torchrun"))
    before = machine(clean, "n0")
    while left := machine(clean, "n1"):
        for number in (signal.SIGSTOP, signal.SIGKILL):  # its agent has no time to tell of a rank that went first
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
    hold.touch()
    _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said
    assert "node n1: its machine is off; next: replace (n1 made anew)" in said
    assert ends(clean) == [("node", "restart"), ("completed", "done")]
    assert clean.manifest()["attempts"][1]["replaced"] == ["n1"]
    assert before & machine(clean, "n0"), "n0 was made anew too"
