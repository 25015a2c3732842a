"""run_logged: a program that ends in its own order, whatever becomes of us."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.run import runner
from nexa_dist.run.runner import Result, Runner
from nexa_dist.run.terraform import locks
from nexa_dist.run.terraform.stack import Terraform

ROOT = Path(__file__).parents[3]
LIMIT_S = 90.0
CONTROLLER = """
import sys
from pathlib import Path
from nexa_dist.run.runner import Runner
folder = Path(sys.argv[1])
Runner().run_logged(sys.argv[2:], folder / "apply.jsonl", on_line=print, hold=folder / "busy", timeout_s=60)
"""
PATIENT = 'echo begun; for _ in $(seq 4000); do [ -e "$1/go" ] && break; sleep 0.02; done; echo last'
STOPPABLE = "trap 'echo stopped; exit 0' INT; echo begun; for _ in $(seq 4000); do sleep 0.02; done; echo last"


def logged(folder: Path, script: str) -> tuple[Result, list[str]]:
    lines: list[str] = []
    log, hold = folder / "logs" / "apply.jsonl", folder / "busy"
    argv = ("sh", "-c", script)
    done = Runner().run_logged(
        argv, log, on_line=lines.append, hold=hold, timeout_s=LIMIT_S, env={"ADDED": "yes"}, grace_s=LIMIT_S
    )
    return done, lines


def free(hold: Path) -> bool:
    with open(hold, "r+") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def eventually(path: Path, text: str) -> None:
    until = time.monotonic() + LIMIT_S
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < until, f"{text!r} is not in {path}"
        time.sleep(0.01)


def test_both_outputs_go_to_the_file_and_to_us(tmp_path: Path) -> None:
    done, lines = logged(tmp_path, 'echo out; echo "err $ADDED" >&2; exit 3')
    assert (done.code, lines) == (3, ["out", "err yes"])
    assert (tmp_path / "logs" / "apply.jsonl").read_text() == "out\nerr yes\n" == done.out.decode()
    assert int((tmp_path / "busy").read_text()) > 1 and free(tmp_path / "busy")


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    _, lines = logged(tmp_path, "printf 'one '; sleep 0.15; printf 'line\\nno end'")
    assert lines == ["one line", "no end"]


def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> float:
        """Time passes with the program's first word."""
        log = tmp_path / "logs" / "apply.jsonl"
        return 2 * LIMIT_S if log.exists() and log.read_text() else 0.0

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=now, sleep=time.sleep))
    done, lines = logged(tmp_path, "echo begun; exec sleep 600")
    assert done.code == 124 and lines == ["begun"]
    assert free(tmp_path / "busy")


def test_an_interrupt_lets_it_end_first(tmp_path: Path) -> None:
    def on_line(line: str) -> None:
        raise KeyboardInterrupt

    log, hold = tmp_path / "apply.jsonl", tmp_path / "busy"
    script = "trap 'echo in order; exit 0' TERM; echo begun; for _ in $(seq 4000); do sleep 0.02; done"
    with pytest.raises(KeyboardInterrupt):
        Runner().run_logged(("sh", "-c", script), log, on_line=on_line, hold=hold, timeout_s=LIMIT_S, grace_s=LIMIT_S)
    assert log.read_text() == "begun\nin order\n" and free(hold)


def test_a_program_that_is_not_there_is_a_result(tmp_path: Path) -> None:
    argv = (str(tmp_path / "missing"),)
    done = Runner().run_logged(argv, tmp_path / "log", on_line=print, hold=tmp_path / "busy", timeout_s=LIMIT_S)
    assert done.code == 127 and "No such file" in done.tail()


def test_while_one_is_at_work_no_other_starts_and_its_log_stays(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "apply.jsonl"
    log.write_text("of the first\n")
    with open(tmp_path / "busy", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(NexaError, match="still at work"):
            logged(tmp_path, "echo second")
    assert log.read_text() == "of the first\n"


@pytest.fixture
def killed(tmp_path: Path) -> Terraform:
    """A folder whose controller was started, to be killed."""
    return Terraform(Runner(), "terraform", tmp_path, "aws")


def kill_controller(terraform: Terraform, script: str) -> int:
    """Starts a controller with a program of that script, kills it with -9, answers the program's pid."""
    argv = ("sh", "-c", script, f"-chdir={terraform.chdir}", str(terraform.folder))
    child = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(terraform.folder), *argv], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    eventually(terraform.folder / "apply.jsonl", "begun")
    while not (terraform.folder / "busy").read_text():  # the controller writes the pid after it started the program
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    pid = terraform.busy()
    assert pid is not None and pid != child.pid and Path(f"/proc/{pid}").exists()
    return pid


def test_a_killed_controller_leaves_its_program_at_work_and_it_is_waited_for(killed: Terraform) -> None:
    pid = kill_controller(killed, PATIENT)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        (killed.folder / "go").touch()

    killed.settle(say, interrupt=False)
    assert said == [f"a Terraform of a killed command is still at work (pid {pid}): waiting"]
    assert (killed.folder / "apply.jsonl").read_text() == "begun\nlast\n"
    assert killed.busy() is None and free(killed.folder / "busy")


def test_teardown_interrupts_what_a_killed_controller_left(killed: Terraform) -> None:
    kill_controller(killed, STOPPABLE)
    killed.settle(lambda _: None, interrupt=True)
    assert (killed.folder / "apply.jsonl").read_text() == "begun\nstopped\n"


def test_a_pid_that_was_given_to_another_program_is_not_signalled(killed: Terraform, tmp_path: Path) -> None:
    bystander = subprocess.Popen(
        [
            "sleep",
            "600",
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        with open(tmp_path / "busy", "w") as held:
            held.write(str(bystander.pid))
            held.flush()
            fcntl.flock(held, fcntl.LOCK_EX)
            killed.settle(lambda _: held.close(), interrupt=True)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_program_that_ends_just_now_needs_no_signal(killed: Terraform, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(locks, "_living", lambda: [(gone.pid, killed.chdir)])
    with open(killed.folder / "busy", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        killed.settle(lambda _: held.close(), interrupt=True)


def test_a_hold_never_names_an_earlier_program(tmp_path: Path) -> None:
    (tmp_path / "busy").write_text("99999999")
    _, lines = logged(tmp_path, f"echo said; cat {tmp_path / 'busy'}")
    assert lines[0] == "said" and "99999999" not in lines


def test_a_hold_without_a_pid_names_none(killed: Terraform, tmp_path: Path) -> None:
    with open(tmp_path / "busy", "w") as held:  # killed before the pid was written
        fcntl.flock(held, fcntl.LOCK_EX)
        assert killed.busy() == 0
    assert killed.busy() is None


def test_a_program_with_a_full_pipe_still_ends_in_order() -> None:
    """It writes more than a pipe holds on its way out, and nobody reads: it must not be killed for that."""
    script = (
        "import signal, sys, time\n"
        "def last_words(*_):\n    sys.stdout.write('x' * 1_000_000)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, last_words)\ntime.sleep(600)\n"
    )
    began = time.monotonic()
    result = Runner().run((sys.executable, "-c", script), timeout_s=0.5, grace_s=LIMIT_S)
    assert result.code == 124
    assert time.monotonic() - began < LIMIT_S
