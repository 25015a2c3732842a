"""Attempts follow each other: nothing of an older one starts, writes or is left beside a newer one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node import record, start
from nexa_dist.node.machine import cgroup, oom
from nexa_dist.node.machine.processes import run_processes
from nexa_dist.node.oslib import start_time
from tests.processes.node.rig import IGNORE, Rig, until

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


def test_a_newer_attempt_ends_the_older_one_first(rig: Rig) -> None:
    rig.start(STUBBORN, signals=IGNORE, grace_s=50)
    rig.ready(0, 1)
    old = run_processes(str(rig.folder))
    assert len(old) >= 5
    rig.start(SLEEP, attempt=2)
    assert not [pid for pid in old if start_time(pid)]
    assert (rig.folder / "generation").read_text() == "2"
    ends = rig.events("ended")
    assert [(e["attempt"], e["state"], e["reason"], e["left"]) for e in ends] == [(1, "stopped", "superseded", [])]
    rig.ready(0, 1, attempt=2)
    assert rig.status()["attempt"] == 2


def test_an_agent_that_cannot_answer_is_replaced_all_the_same(rig: Rig, monkeypatch: Any) -> None:
    rig.start(SLEEP)
    rig.ready(0, 1)
    os.kill(rig.agent_pid(), signal.SIGKILL)
    rig.start(SLEEP, attempt=2)
    ends = rig.events("ended")
    assert [(e["attempt"], e["reason"], e["left"]) for e in ends] == [(1, "superseded", [])]


def test_an_older_attempt_may_not_start_any_more(rig: Rig) -> None:
    rig.start("pass", attempt=3)
    assert rig.ended()["state"] == "completed"
    answer = rig.call("start", str(rig.folder), message={"spec": rig.spec("pass", attempt=2)}, check=False)
    assert "attempt 3 of this run has taken the place of attempt 2" in answer["error"]
    assert len(rig.events("started")) == 1


def test_a_start_that_comes_after_its_stop_starts_nothing(rig: Rig) -> None:
    rig.folder.mkdir()
    rig.stop(attempt=1)
    answer = rig.call("start", str(rig.folder), message={"spec": rig.spec("pass")}, check=False)
    assert answer["error"] == "attempt 1 of this run was stopped before it could start"
    assert rig.events() == []


def test_a_rank_of_an_older_attempt_does_not_run(rig: Rig) -> None:
    rig.folder.mkdir()
    (rig.folder / "generation").write_text("2")
    spec = rig.spec("", world=1)
    argv = [*rig.argv, "rank", "--", sys.executable, "-c", "print('ran')"]
    env = {**os.environ, **spec["env"], "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    assert subprocess.run(argv, env=env).returncode == 78
    assert rig.log().read_text() == "nexa: attempt 1 is over: attempt 2 has taken its place\n"


def test_two_starts_at_once_start_one_agent(rig: Rig) -> None:
    text = json.dumps({"spec": rig.spec(SLEEP)}).encode()
    made = []
    for _ in range(3):
        child = subprocess.Popen([*rig.argv, "start", str(rig.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin
        child.stdin.write(text)
        child.stdin.close()
        made.append(child)
    answers = []
    for child in made:
        assert child.stdout
        answers.append(json.loads(child.stdout.read()))
        child.stdout.close()
        assert child.wait() == 0
    assert len({answer["pid"] for answer in answers}) == 1
    assert sorted(answer["already"] for answer in answers) == [False, True, True]


def test_the_lock_of_a_start_does_not_outlive_it(rig: Rig) -> None:
    rig.start(SLEEP)
    with start.lock(str(rig.folder)) as door:
        assert door > 0


def test_each_rank_tells_where_it_started_and_where_it_ended(rig: Rig) -> None:
    code = """
import json, os, sys, time
with open(os.environ["NEXA_PROGRESS"], "w") as file:
    file.write(json.dumps({"step": 40 + int(os.environ["RANK"]), "of": 99, "loss": 0.5}).ljust(512))
if os.environ["RANK"] == "1":
    while '"rank_exit"' not in open(os.environ["NEXA_RUN_DIR"] + "/agent.jsonl").read():
        time.sleep(0.02)
    os.kill(os.getpid(), 9)
"""
    rig.start(code)
    status = rig.ended()
    assert {e["rank"] for e in rig.events("rank_start")} == {0, 1}
    found = {e["rank"]: (e["code"], e["signal"], e["step"], e["oom"]) for e in status["ranks"]}
    assert found == {0: (0, 0, 40, False), 1: (0, 9, 41, False)}
    assert status["progress"]["steps"]["1"] == 41
    assert (status["progress"]["of"], status["progress"]["loss"], status["progress"]["saved"]) == (99, 0.5, None)
    rig.start("import os; assert not os.path.exists(os.environ['NEXA_PROGRESS'])", attempt=2)
    assert rig.ended()["state"] == "completed"


def test_a_process_that_hides_from_the_walk_is_found_by_its_group(rig: Rig) -> None:
    hidden = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {hidden!r}], env={{}}, start_new_session=True, stdout=subprocess.PIPE)
print("hidden", child.stdout.readline().decode(), "ready", flush=True)
time.sleep(600)
"""
    rig.start(code, world=1)
    rig.ready(0)
    pid = int(rig.log().read_text().split()[1])
    os.kill(rig.agent_pid(), signal.SIGKILL)
    if not rig.groups():  # no control group can be made here: then only a living agent finds it
        os.kill(pid, signal.SIGKILL)
        return
    until(lambda: run_processes(str(rig.folder)) == [pid])
    assert rig.stop()["left"] == []
    assert start_time(pid) is None


def test_without_control_groups_nothing_is_made(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cgroup, "own", lambda: None)
    assert cgroup.make(str(tmp_path)) is None
    monkeypatch.setattr(cgroup, "own", lambda: ("/proc", ""))  # a place where no folder can be made
    assert cgroup.make(str(tmp_path)) is None
    assert cgroup.members(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_only_a_recent_kill_for_memory_is_ours(monkeypatch: Any) -> None:
    count = [5]
    monkeypatch.setattr(oom, "counter", lambda: count[0])
    watch = oom.Watch()
    assert not watch.killed(9)
    count[0] = 6
    assert watch.killed(9)
    assert not watch.killed(15)
    watch.look()
    assert watch.killed(9)  # the counter was read between the kill and the end of the process
    watch.look()
    assert not watch.killed(9)


def test_a_record_survives_lines_that_a_full_disk_cut_off(tmp_path: Path) -> None:
    lines = [
        '{"event": "started", "at": 1, "attempt": 1}',
        '{"event": "rank_exit", "at": 2, "rank": 0}',
        '{"event": "started", "at": 3, "attempt": 2}',
        '{"event": "progress", "at": 4, "ste{"event": "rank_start", "at": 5, "rank": 1, "pid": 77}',
        '{"event": "progress", "at": 6, "steps": {"1": 8}}',
        '{"event": "heartbeat", "at": 7}',
        "null",
    ]
    (tmp_path / "spec.json").write_text('{"attempt": 2}')
    path = tmp_path / "agent.jsonl"
    path.write_text("\n".join(lines) + '\n{"event": "ended", "a')
    found = record.Record(str(tmp_path)).read()
    assert (found.exits, found.pids, found.end) == ([], {1: 77}, None)
    assert found.progress is not None
    assert found.progress["steps"] == {"1": 8}
    assert found.last_unix == 7
    with path.open("a") as file:
        file.write('t": 9, "state": "failed", "code": 1, "reason": "hang", "left": []}\n')
    assert found.read().state() == {"state": "failed", "code": 1, "reason": "hang", "left": []}


def test_the_last_word_of_an_agent_that_is_gone_counts(tmp_path: Path, monkeypatch: Any) -> None:
    """It comes between our look at the events and our look at the agent."""
    path = tmp_path / "agent.jsonl"
    path.write_text('{"event": "started", "at": 1, "attempt": 1}\n')
    found = record.Record(str(tmp_path), 1).read()

    def ends(_: Any) -> bool:
        with path.open("a") as file:
            file.write('{"event": "ended", "at": 9, "state": "completed", "code": 0, "reason": "", "left": []}\n')
        return False

    monkeypatch.setattr(record, "alive", ends)
    assert found.state()["state"] == "completed"


# Runs `start` with a function of the agent that waits for a file before it does its work.
HELD = """
import json, os, sys, time
from nexa_dist.node import attempt, start
folder, where, name = sys.argv[1], {"start": start, "Attempt": attempt.Attempt}[sys.argv[2]], sys.argv[3]
does = getattr(where, name)
def held(*given, **more):
    open(folder + "/born", "w").close()
    end = time.monotonic() + 600
    while not os.path.exists(folder + "/go_on") and time.monotonic() < end:
        time.sleep(0.01)
    return does(*given, **more)
setattr(where, name, held)
start.start(folder, json.load(sys.stdin))
"""


def begin_held(rig: Rig, where: str, name: str) -> subprocess.Popen[str]:
    """Starts an attempt whose agent waits there for the file `go_on`."""
    argv = [sys.executable, "-c", HELD, str(rig.folder), where, name]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)
    assert child.stdin
    child.stdin.write(json.dumps({"spec": rig.spec(SLEEP), "go": True}))
    child.stdin.close()
    until((rig.folder / "born").exists)
    return child


def test_a_start_that_is_killed_leaves_its_agent_the_lock_until_it_is_known(rig: Rig) -> None:
    child = begin_held(rig, "start", "holder_of")
    child.kill()
    child.wait()
    try:
        with open(rig.folder / "start.lock") as door, pytest.raises(BlockingIOError):
            fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        (rig.folder / "go_on").touch()
    answer = rig.call("start", str(rig.folder), message={"spec": rig.spec(SLEEP)})
    assert answer == {"pid": rig.agent_pid(), "already": True}
    assert len(rig.events("started")) == 1


def test_an_agent_that_is_told_to_end_before_it_works_says_so(rig: Rig) -> None:
    child = begin_held(rig, "Attempt", "__init__")
    assert child.wait() == 0
    os.kill(rig.agent_pid(), signal.SIGTERM)
    (rig.folder / "go_on").touch()
    until(lambda: rig.events("ended"))
    assert [(e["state"], e["reason"]) for e in rig.events("ended")] == [("stopped", "stopped by the user")]


def test_a_rank_whose_agent_is_gone_does_not_run(rig: Rig) -> None:
    rig.folder.mkdir()
    (rig.folder / "agent.pid").write_text(json.dumps({"pid": os.getpid(), "start_time": 1}))
    argv = [*rig.argv, "rank", "--", sys.executable, "-c", "print('ran')"]
    env = {**os.environ, **rig.spec("", world=1)["env"], "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    assert subprocess.run(argv, env=env).returncode == 1
    assert not rig.log().exists() and rig.events() == []


def test_who_asks_too_late_to_die_with_its_parent_dies() -> None:
    code = "import os; from nexa_dist.node.oslib import die_with_parent as die; die({}); print('lives')"
    for parent, expected in (("os.getppid()", (0, b"lives\n")), ("os.getpid()", (-signal.SIGKILL, b""))):
        done = subprocess.run([sys.executable, "-c", code.format(parent)], stdout=subprocess.PIPE)
        assert (done.returncode, done.stdout) == expected
