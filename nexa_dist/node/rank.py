"""One rank under torchrun: its own log, its exit code as an event, dead when torchrun is."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from .machine import oom
from .oslib import alive, die_with_parent, event, log_to, read_at, read_json
from .protocol import Event

EXIT_WRONG_WORLD = 78
OOM_LOOK_S = 5.0
MOST_STEPS = 1 << 53
FLIGHT_FILES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_PIPE_FILE")
"""Where the flight recorder dumps to, by its newer and its older name, and where it is asked to."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def prepare_folder(run_dir: str, number: int, attempt: int) -> tuple[str, str]:
    """(folder, log file) of a rank; the folder is made."""
    folder = os.path.join(run_dir, "rank_%d" % number)
    os.makedirs(folder, exist_ok=True)
    return folder, os.path.join(folder, "attempt_%d.log" % attempt)


def rank_environment(folder: str, given: Mapping[str, str]) -> dict[str, str]:
    """Variables of one rank beyond the environment of its node, which is `given`. In a folder of each rank's own, since
    torch fails where two processes make one pipe at once."""
    made = {"NEXA_RANK_DIR": folder, "NEXA_PROGRESS": os.path.join(folder, "progress.json")}
    if not any(name in given for name in FLIGHT_FILES):
        made.update(dict.fromkeys(FLIGHT_FILES, stem(folder)))
    return made


def stem(folder: str) -> str:
    """To this torch's flight recorder adds the rank for its dump, and .pipe for the pipe by which it is asked."""
    return os.path.join(folder, "flight_")


def report_exit(run_dir: str, number: int, status: int, oom_killed: bool = False) -> None:
    """`status` is the exit code, or minus the number of the signal, as in Popen.returncode."""
    event(
        run_dir, Event.RANK_EXIT,
        rank=number, code=max(status, 0), signal=max(-status, 0), step=last_step(run_dir, number), oom=oom_killed,
    )  # fmt: skip


def last_step(run_dir: str, number: int) -> int | None:
    """The step that the rank reported last, in this attempt."""
    found = read_progress(run_dir, number)
    return None if found is None else found["step"]


def read_progress(run_dir: str, number: int) -> dict[str, Any] | None:
    """A rank's progress.json; None when it has none yet, or was caught while it was written."""
    try:
        found = json.loads(read_at(os.path.join(run_dir, "rank_%d" % number, "progress.json"), 0, 4096))
        return dict(found) if type(found["step"]) is int and 0 <= found["step"] < MOST_STEPS else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def main(argv: list[str]) -> int:
    """Runs `argv` as the rank that torchrun's environment names. Returns its exit code."""
    die_with_parent(os.getppid())
    run_dir, number, attempt = (os.environ["NEXA_RUN_DIR"], int(os.environ["RANK"]), int(os.environ["NEXA_ATTEMPT"]))
    agent = read_json(os.path.join(run_dir, "agent.pid"))
    if agent and not alive(agent):
        return 1  # torchrun died with it, maybe before we asked to die with torchrun
    folder, log_path = prepare_folder(run_dir, number, attempt)
    log_to(log_path)
    wrong = wrong_world(number) or wrong_generation(run_dir, attempt)
    if wrong:
        print("nexa: " + wrong, file=sys.stderr, flush=True)
        report_exit(run_dir, number, EXIT_WRONG_WORLD)
        return EXIT_WRONG_WORLD
    environment = {**os.environ, **rank_environment(folder, os.environ)}
    memory = oom.Watch()
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until there is somebody to pass them on to
    try:
        us = os.getpid()
        child = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, preexec_fn=lambda: _begin(us))
    except OSError as error:
        print("nexa: %s: %s" % (argv[0], error), file=sys.stderr, flush=True)
        report_exit(run_dir, number, 127)
        return 127
    event(run_dir, Event.RANK_START, rank=number, pid=child.pid)
    for name in PASSED_ON:
        signal.signal(name, lambda number, _: child.send_signal(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    signal.signal(signal.SIGALRM, lambda *_: memory.look())
    signal.setitimer(signal.ITIMER_REAL, OOM_LOOK_S, OOM_LOOK_S)
    status = child.wait()
    signal.setitimer(signal.ITIMER_REAL, 0)
    report_exit(run_dir, number, status, memory.killed(-status))
    if status < 0:
        end_by_signal(-status)
    return status


def _begin(parent: int) -> None:
    die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def wrong_world(number: int) -> str:
    """Say which rank torchrun made of this process, when the plan says another."""
    world, planned = (os.environ["WORLD_SIZE"], os.environ["NEXA_WORLD_SIZE"])
    first, size = (int(os.environ["NEXA_FIRST_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    if world == planned and first <= number < first + size:
        return ""
    return "torchrun made rank %d of world size %s on node %s, the plan says ranks %d to %d of %s" % (
        number, world, os.environ["NEXA_NODE"], first, first + size - 1, planned,
    )  # fmt: skip


def wrong_generation(run_dir: str, attempt: int) -> str:
    newest = read_json(os.path.join(run_dir, "generation"), attempt)
    return "" if newest == attempt else "attempt %d is over: attempt %s has taken its place" % (attempt, newest)


def end_by_signal(number: int) -> NoReturn:
    """Ends us as the rank was ended, so that torchrun reports it; without a core file of our own."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
