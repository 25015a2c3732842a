"""The node agent with real processes; a three-line stand-in for torchrun starts the ranks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node import agent

AGENT = [sys.executable, "-S", "-E", agent.__file__]
# Starts the ranks as torchrun does: in sessions of their own, through the agent's `rank`.
TORCHRUN = """
import os, subprocess, sys
world = int(os.environ["NEXA_WORLD_SIZE"])
made = [subprocess.Popen([sys.executable, "-S", "-E", sys.argv[1], "rank", "--", sys.executable, "-c", sys.argv[2]],
        env={**os.environ, "RANK": str(r), "WORLD_SIZE": os.environ.get("LIE", str(world)),
             "LOCAL_WORLD_SIZE": str(world)}, start_new_session=True) for r in range(world)]
sys.exit(max(abs(p.wait()) for p in made))
"""


def call(*words: str, message: Any = None, check: bool = True) -> dict[str, Any]:
    done = subprocess.run([*AGENT, *words], input=json.dumps(message), capture_output=True, text=True, timeout=30)
    assert not check or done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("not within the time")


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a run's dir"
    yield folder
    assert call("stop", str(folder), message={"grace_s": 0})["left"] == []


def start(run_dir: Path, rank_code: str, *, world: int = 2, go: bool = True, **more: Any) -> None:
    env = {
        "NEXA_RUN_DIR": str(run_dir),
        "NEXA_WORLD_SIZE": str(world),
        "NEXA_FIRST_RANK": "0",
        "NEXA_NODE": "n0",
        "NEXA_ATTEMPT": "1",
        **more.pop("env", {}),
    }
    spec = {
        "run_id": "r", "attempt": 1, "node": "n0", "env": env, "cwd": str(run_dir / "work"), "grace_s": 2,
        "argv": [sys.executable, "-c", TORCHRUN, agent.__file__, rank_code], **more,
    }  # fmt: skip
    call("start", str(run_dir), message={"spec": spec, "secrets": {"HF_TOKEN": "canary-123"}})
    if go:
        agent.go(str(run_dir))


def ended(run_dir: Path) -> dict[str, Any]:
    return dict(until(lambda: (s := agent.status(str(run_dir)))["state"] in ("completed", "failed", "stopped") and s))


def test_a_run_completes_and_leaves_logs_and_no_secret(run_dir: Path) -> None:
    code = "import tempfile; from os import environ as e; tempfile.mkdtemp(); "
    code += "print('rank', e['RANK'], e['HF_TOKEN'][:6], e['NEXA_RANK_DIR'][-6:])"
    start(run_dir, code)
    status = ended(run_dir)
    assert (status["state"], status["processes"], status["left"]) == ("completed", [], [])
    assert (run_dir / "rank_1" / "attempt_1.log").read_text() == "rank 1 canary rank_1\n"
    kept = [p for p in run_dir.rglob("*") if p.is_file() and b"canary-123" in p.read_bytes()]
    assert kept == []
    assert not Path(json.loads((run_dir / "tmp.json").read_text())).exists()


def test_start_again_is_the_same_attempt(run_dir: Path) -> None:
    start(run_dir, "import time; time.sleep(60)")
    spec = json.loads((run_dir / "spec.json").read_text())
    assert call("start", str(run_dir), message={"spec": spec})["already"] is True
    answer = call("start", str(run_dir), message={"spec": {**spec, "attempt": 2}}, check=False)
    assert "attempt 1 of this run is still alive" in answer["error"]


def test_the_failing_rank_is_reported_with_its_code(run_dir: Path) -> None:
    start(run_dir, "import os, sys; sys.exit(7 if os.environ['RANK'] == '1' else 0)")
    status = ended(run_dir)
    assert status["state"] == "failed"
    assert [(r["rank"], r["code"]) for r in status["ranks"] if r["code"]] == [(1, 7)]


def test_a_world_of_the_wrong_size_is_refused(run_dir: Path) -> None:
    start(run_dir, "print('ran')", env={"LIE": "1"})
    status = ended(run_dir)
    assert status["state"] == "failed"
    assert {r["code"] for r in status["ranks"]} == {agent.EXIT_WRONG_WORLD}
    log = (run_dir / "rank_1" / "attempt_1.log").read_text()
    assert "of world size 1 on node n0, the plan says ranks 0 to 1 of 2" in log
    assert "ran\n" not in log


def test_stop_lets_ranks_save_and_ends_what_ignores_it(run_dir: Path) -> None:
    code = """
import os, signal, subprocess, sys, time
subprocess.Popen(["setsid", "sleep", "60"])  # a daemon of the rank, in a session of its own
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
    # torchrun passes SIGTERM on to its workers; the stand-in's default action ends it, and them with it
    passing = TORCHRUN.replace(
        "sys.exit(max", "import signal\nsignal.signal(15, lambda *_: [p.terminate() for p in made])\nsys.exit(max"
    )
    start(run_dir, code, argv=[sys.executable, "-c", passing, agent.__file__, code])
    logs = [run_dir / f"rank_{r}" / "attempt_1.log" for r in (0, 1)]
    until(lambda: all(p.exists() and "ready" in p.read_text() for p in logs))
    answer = call("stop", str(run_dir), message={"grace_s": 0.3, "reason": "test"})
    assert (answer["state"], answer["reason"], answer["left"]) == ("stopped", "test", [])
    assert "saved" in logs[0].read_text()
    assert agent.status(str(run_dir))["processes"] == []


def test_a_second_stop_does_not_wait_for_the_first_ones_grace(run_dir: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    ignore = TORCHRUN.replace("sys.exit(max", "import signal\nsignal.signal(15, signal.SIG_IGN)\nsys.exit(max")
    start(run_dir, code, argv=[sys.executable, "-c", ignore, agent.__file__, code])
    until(lambda: len(list(run_dir.glob("rank_*/*.log"))) == 2)
    first = subprocess.Popen([*AGENT, "stop", str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdin
    first.stdin.write(b'{"grace_s": 50, "reason": "first"}')
    first.stdin.close()
    until(lambda: agent.status(str(run_dir))["state"] == "stopping")
    answer = call("stop", str(run_dir), message={"grace_s": 0, "reason": "second"})
    assert (answer["state"], answer["reason"], answer["left"]) == ("stopped", "first", [])
    assert first.wait(10) == 0
    assert first.stdout
    first.stdout.close()


def test_a_new_attempt_runs_the_code_as_it_is_now_and_keeps_what_was_written(tmp_path: Path) -> None:
    old, new, work = tmp_path / "old", tmp_path / "new", tmp_path / "work"
    for folder, text in ((old, "1"), (new, "2")):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a.py").write_text(text)
        (folder / "sub" / "a.py").chmod(0o444)
        (folder / "link.py").symlink_to("sub/a.py")
        (folder / "linked").symlink_to("sub")
    agent.lay_over(str(old), str(work))
    (work / "sub" / "snapshot.pt").write_text("of the first attempt")
    agent.lay_over(str(new), str(work))
    assert (work / "link.py").read_text() == "2"
    assert (work / "linked").is_symlink()
    assert (work / "sub" / "snapshot.pt").read_text() == "of the first attempt"


def test_a_killed_agent_leaves_no_rank(run_dir: Path) -> None:
    start(run_dir, "import time; print('ready', flush=True); time.sleep(60)")
    until(lambda: len(list(run_dir.glob("rank_*/*.log"))) == 2)
    os.kill(json.loads((run_dir / "agent.pid").read_text())["pid"], signal.SIGKILL)
    until(lambda: agent.status(str(run_dir))["processes"] == [])
    assert agent.status(str(run_dir))["state"] == "lost"
    tmp = Path(json.loads((run_dir / "tmp.json").read_text()))
    assert tmp.is_dir()
    call("stop", str(run_dir), message={"grace_s": 0})
    assert not tmp.exists()


def test_the_deadline_holds_without_a_controller(run_dir: Path) -> None:
    start(run_dir, "import time; time.sleep(60)", deadline_in_s=0.3)
    status = ended(run_dir)
    assert (status["state"], status["reason"], status["processes"]) == ("stopped", "deadline", [])


def test_a_failed_preparation_starts_no_rank(run_dir: Path) -> None:
    start(run_dir, "print('ran')", go=False, prepare=[sys.executable, "-c", "print('no data'); raise SystemExit(3)"])
    status = ended(run_dir)
    assert (status["state"], status["code"], status["reason"]) == ("failed", 3, "prepare")
    assert (run_dir / "prepare.attempt_1.log").read_text() == "no data\n"
    assert not list(run_dir.glob("rank_*"))


def test_a_program_that_is_not_there(run_dir: Path) -> None:
    start(run_dir, "", argv=["/no/such/python"])
    assert ended(run_dir)["code"] == 127
    assert "/no/such/python" in (run_dir / "torchrun.attempt_1.log").read_text()


def frames(run_dir: Path, offsets: dict[str, int]) -> tuple[dict[str, bytes], dict[str, Any]]:
    message = json.dumps({"offsets": offsets, "once": True}).encode() + b"\n"
    out = subprocess.run([*AGENT, "follow", str(run_dir)], input=message, capture_output=True, timeout=30).stdout
    stream, found, last = io.BytesIO(out), {}, {}
    while header := stream.readline():
        last = json.loads(header)
        if "len" in last:
            found[last["src"]] = found.get(last["src"], b"") + stream.read(last["len"])
    return found, dict(last["end"])


def test_follow_goes_on_from_byte_offsets_with_bytes_as_they_are(run_dir: Path) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'\xff\x1b]0;title\x07 ' + b'x' * 200_000 + b'\nend')"
    start(run_dir, code, world=1)
    ended(run_dir)
    found, end = frames(run_dir, {})
    log = found["rank_0/attempt_1.log"]
    assert log == b"\xff\x1b]0;title\x07 " + b"x" * 200_000 + b"\nend"
    assert end["state"] == "completed"
    again, _ = frames(run_dir, {"rank_0/attempt_1.log": len(log) - 3, "agent.jsonl": 0})
    assert again["rank_0/attempt_1.log"] == b"end"


def test_unpack_is_whole_or_absent_and_stays_in_its_folder(tmp_path: Path) -> None:
    def pack(name: str) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"hi"))
        return buffer.getvalue()

    target = tmp_path / "code" / "abc"
    for data, code in ((pack("../../evil"), 1), (pack("ok.py")[:-20], 1), (pack("ok.py"), 0), (pack("ok.py"), 0)):
        done = subprocess.run([*AGENT, "unpack", str(target)], input=data, capture_output=True)
        assert done.returncode == code
        assert target.exists() == (code == 0)
    assert not (tmp_path / "evil").exists()
    assert (target / "ok.py").read_text() == "hi"
