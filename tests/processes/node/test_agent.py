"""One attempt from its start to its end, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nexa_dist.node import attempt
from nexa_dist.node.code import tree as code_tree
from nexa_dist.node.rank import EXIT_WRONG_WORLD
from tests.processes.node.rig import IGNORE, PASS_ON, Rig, until


def test_a_run_completes_and_leaves_logs_and_no_secret(rig: Rig) -> None:
    code = "import tempfile; from os import environ as e; tempfile.mkdtemp(); "
    code += "print('rank', e['RANK'], e['HF_TOKEN'][:6], e['NEXA_RANK_DIR'][-6:])"
    rig.start(code)
    status = rig.ended()
    assert (status["state"], status["processes"], status["left"]) == ("completed", [], [])
    assert rig.log(1).read_text() == "rank 1 canary rank_1\n"
    kept = [p for p in rig.folder.rglob("*") if p.is_file() and b"canary-123" in p.read_bytes()]
    assert kept == []
    assert not Path(json.loads((rig.folder / "tmp.json").read_text())).exists()


def test_start_again_is_the_same_attempt(rig: Rig) -> None:
    spec = rig.start("import time; time.sleep(600)")
    again = rig.call("start", str(rig.folder), message={"spec": spec})
    assert again == {"pid": rig.agent_pid(), "already": True}
    rig.stop()
    assert rig.call("start", str(rig.folder), message={"spec": spec})["already"] is True  # a repeat that came late
    assert len(rig.events("started")) == 1


def test_the_failing_rank_is_reported_with_its_code(rig: Rig) -> None:
    rig.start("import os, sys; sys.exit(7 if os.environ['RANK'] == '1' else 0)")
    status = rig.ended()
    assert status["state"] == "failed"
    assert [(r["rank"], r["code"]) for r in status["ranks"] if r["code"]] == [(1, 7)]


def test_a_world_of_the_wrong_size_is_refused(rig: Rig) -> None:
    rig.start("print('ran')", env={"LIE": "1"})
    status = rig.ended()
    assert status["state"] == "failed"
    assert {r["code"] for r in status["ranks"]} == {EXIT_WRONG_WORLD}
    log = rig.log(status["ranks"][0]["rank"]).read_text()
    assert "of world size 1 on node n0, the plan says ranks 0 to 1 of 2" in log
    assert "ran\n" not in log


def test_stop_lets_ranks_save_and_ends_what_ignores_it(rig: Rig) -> None:
    code = """
import os, signal, subprocess, sys, time
subprocess.Popen(["setsid", "sleep", "600"])  # a daemon of the rank, in a session of its own
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
    rig.start(code, signals=PASS_ON)
    rig.ready(0, 1)
    answer = rig.stop(grace_s=10, reason="test")
    assert (answer["state"], answer["reason"], answer["left"]) == ("stopped", "test", [])
    assert "saved" in rig.log(0).read_text()
    assert rig.status()["processes"] == []


def test_a_rank_that_tells_of_its_start_after_the_stop_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, first, second = (subprocess.Popen(["sleep", "600"]) for _ in range(3))
    asks, known = attempt.Attempt.__new__(attempt.Attempt), [first.pid]
    monkeypatch.setattr(asks, "asked", set(), raising=False)
    monkeypatch.setattr(asks, "watcher", SimpleNamespace(living=lambda: known), raising=False)
    try:
        for rank in (first, second):
            known.append(rank.pid)
            asks.terminate(launcher)
            assert rank.wait(90) == -signal.SIGTERM
        assert launcher.poll() is None
    finally:
        for child in (launcher, first, second):
            child.kill()
            child.wait()


def test_a_second_stop_does_not_wait_for_the_first_ones_grace(rig: Rig) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    rig.start(code, signals=IGNORE)
    rig.ready(0, 1)
    first = subprocess.Popen([*rig.argv, "stop", str(rig.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdin
    first.stdin.write(b'{"grace_s": 600, "reason": "first"}')
    first.stdin.close()
    until(lambda: rig.status()["state"] == "stopping")
    answer = rig.stop(reason="second")
    assert (answer["state"], answer["reason"], answer["left"]) == ("stopped", "first", [])
    assert first.wait(90) == 0
    assert first.stdout
    first.stdout.close()


def test_a_resumed_run_runs_the_new_code_and_finds_what_it_wrote(rig: Rig, tmp_path: Path) -> None:
    def code(text: str) -> str:
        made = tmp_path / "made"
        made.mkdir()
        (made / "v.py").write_text(f"V = {text!r}")
        return str(made.rename(tmp_path / code_tree.digest(code_tree.read(str(made)))))

    script = "import v; from pathlib import Path; p = Path('seen.txt'); p.touch(); "
    script += "p.write_text(p.read_text() + v.V); print(p.read_text())"
    for number, text in enumerate(("v1", "v2"), 1):
        rig.start(f"import sys; sys.path.insert(0, ''); {script}", world=1, attempt=number, code=code(text))
        assert rig.ended()["state"] == "completed"
    assert (rig.log(0, 1).read_text(), rig.log(0, 2).read_text()) == ("v1\n", "v1v2\n")


def test_a_killed_agent_leaves_no_rank(rig: Rig) -> None:
    rig.start("import time; print('ready', flush=True); time.sleep(600)")
    rig.ready(0, 1)
    os.kill(rig.agent_pid(), signal.SIGKILL)
    until(lambda: rig.status()["processes"] == [])
    assert rig.status()["state"] == "lost"
    tmp = Path(json.loads((rig.folder / "tmp.json").read_text()))
    assert tmp.is_dir()
    rig.stop()
    assert not tmp.exists()


def test_the_deadline_holds_without_a_controller(rig: Rig) -> None:
    rig.start("import time; time.sleep(600)", deadline_in_s=0.3)
    status = rig.ended()
    assert (status["state"], status["reason"], status["processes"]) == ("stopped", "deadline", [])


def test_money_ends_a_run_without_a_controller_and_the_next_attempt_starts_afresh(rig: Rig) -> None:
    rig.start("import time; print('ready', flush=True); time.sleep(600)")
    rig.ready(0, 1)
    rig.call("allow", str(rig.folder), message={"seconds": 600})  # later moved, as a budget may be
    rig.call("allow", str(rig.folder), message={"seconds": 0})
    status = rig.ended()
    assert (status["state"], status["reason"], status["processes"]) == ("stopped", "budget", [])
    rig.start("print('ran')", attempt=2)
    assert rig.ended()["state"] == "completed"


def test_a_failed_preparation_starts_no_rank(rig: Rig) -> None:
    rig.start("print('ran')", go=False, prepare=[sys.executable, "-c", "print('no data'); raise SystemExit(3)"])
    status = rig.ended()
    assert (status["state"], status["code"], status["reason"]) == ("failed", 3, "prepare")
    assert (rig.folder / "prepare.attempt_1.log").read_text() == "no data\n"
    assert not list(rig.folder.glob("rank_*"))


def test_a_program_that_is_not_there(rig: Rig) -> None:
    rig.start("", argv=["/no/such/python"])
    assert rig.ended()["code"] == 127
    assert "/no/such/python" in (rig.folder / "torchrun.attempt_1.log").read_text()
