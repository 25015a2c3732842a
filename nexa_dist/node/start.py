"""The command `start`: makes the node ready for an attempt, and leaves a daemon that sees to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from .code import tree
from .code.work import lay_out
from .machine import container
from .machine.processes import kill_run, remove_tmp
from .oslib import PAID, POLL_S, alive, event, fail, holder_of, log_to, newest_attempt, read_json, write_json
from .protocol import VERSION, Event, Reason, Spec
from .record import Record

LOCK_TIMEOUT_S = 60.0
SUPERSEDE_S = 10.0


def start(run_dir: str, message: dict[str, Any]) -> dict[str, Any]:
    """`message` is {"spec", "secrets", "go", "notify"}. Answers {"pid", "already"} and what `lay_out` says; an attempt
    begins at most once.

    With `go` the ranks begin as soon as they can; without it when the command `go` comes.
    """
    spec: Spec = message["spec"]
    if spec.get("version", VERSION) != VERSION:
        fail("this agent is of version %d, and was told of an attempt in version %s" % (VERSION, spec["version"]))
    os.makedirs(run_dir, mode=0o700, exist_ok=True)
    with lock(run_dir) as door:
        pid = begun(run_dir, spec["attempt"])
        if pid:
            return {"pid": pid, "already": True}
        laid = make_ready(run_dir, spec, go=bool(message.get("go")))
        return {"pid": _daemon(run_dir, message, door), "already": False, **laid}


def make_ready(run_dir: str, spec: Spec, *, go: bool) -> dict[str, Any]:
    """Make the run's folder ready for an attempt that has not begun, as its one writer. Answers what `lay_out` says."""
    write_json(os.path.join(run_dir, "generation"), spec["attempt"])  # from here on the ranks before it are fenced
    _end_older(run_dir)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(run_dir, PAID))
    os.makedirs(spec["cwd"], exist_ok=True)
    laid = lay_out(spec["code"], spec["cwd"], run_dir, spec["attempt"]) if spec.get("code") else {}
    _link_data(run_dir, spec.get("data") or {})
    container.note(run_dir, spec.get("container"))
    if spec.get("config") is not None:
        write_json(os.path.join(run_dir, "train.json"), spec["config"])
    write_json(os.path.join(run_dir, "spec.json"), spec)
    if go:
        write_json(os.path.join(run_dir, "go.attempt_%d" % spec["attempt"]), {"at": time.time()})
    return laid


def _link_data(run_dir: str, data: dict[str, list[str]]) -> None:
    """RUN_DIR/data/NAME leads to data of the node, {name: [its folder, what is seen of it]}; a name that this attempt
    has no more goes."""
    names = os.path.join(run_dir, "data")
    for name in os.listdir(names) if os.path.isdir(names) else []:
        if name not in data and os.path.islink(os.path.join(names, name)):
            os.unlink(os.path.join(names, name))
    for name, (folder, inside) in data.items():
        target = os.path.join(folder, inside)
        if not os.path.exists(target):
            fail("data %s is gone from this node (%s): run the command again, which brings it" % (name, target))
        tree.touch(folder)
        os.makedirs(names, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(names, name))
        os.symlink(target, os.path.join(names, name))


@contextlib.contextmanager
def lock(run_dir: str) -> Iterator[int]:
    """One `start` at a time; its file descriptor. Freed by the kernel when we are killed."""
    door = os.open(os.path.join(run_dir, "start.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    fail("another start of this run is under way here for over %d s" % LOCK_TIMEOUT_S)
                time.sleep(POLL_S)
        yield door
    finally:
        os.close(door)


def begun(run_dir: str, attempt: int) -> int:
    """The pid of this attempt's agent if it was started before, else 0. Refuses what is over."""
    newest = newest_attempt(run_dir)
    if attempt < newest:
        fail(
            "attempt %d of this run has taken the place of attempt %d, which may not start any more" % (newest, attempt)
        )
    holder = read_json(os.path.join(run_dir, "agent.pid")) or {}
    if holder.get("attempt") == attempt and (alive(holder) or Event.STARTED in Record(run_dir, attempt).read().names):
        return int(holder["pid"])
    if os.path.exists(os.path.join(run_dir, "stop.attempt_%d" % attempt)):
        fail("attempt %d of this run was stopped before it could start" % attempt)
    return 0


def _end_older(run_dir: str) -> None:
    """Ends what there is of attempts before this one; nothing of theirs may run beside it."""
    holder = read_json(os.path.join(run_dir, "agent.pid"))
    if alive(holder):
        order = {"grace_s": 0, "reason": Reason.SUPERSEDED, "release": False}
        write_json(os.path.join(run_dir, "stop.attempt_%d" % holder["attempt"]), order)
        end_agent(holder, SUPERSEDE_S)
    _, left = kill_run(run_dir)
    remove_tmp(run_dir)
    if holder and not Record(run_dir, holder["attempt"]).read().end:
        last = {"state": "stopped", "code": 143, "reason": Reason.SUPERSEDED, "left": left}
        event(run_dir, Event.ENDED, **last, attempt=holder["attempt"])
    if left:
        fail("processes of an earlier attempt cannot be ended: %s" % left)
    if stays := container.remove(run_dir):
        fail("a container of an earlier attempt cannot be removed: %s" % stays)


def end_agent(holder: Any, timeout_s: float) -> None:
    """SIGTERM to an agent that knows why from its stop file; SIGKILL after the time."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder["pid"], signal.SIGTERM)
        os.kill(holder["pid"], signal.SIGCONT)
    end = time.monotonic() + timeout_s
    while alive(holder) and time.monotonic() < end:
        time.sleep(POLL_S / 2)
    if alive(holder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder["pid"], signal.SIGKILL)
        while alive(holder) and time.monotonic() < end + 1:
            time.sleep(POLL_S / 2)


def _daemon(run_dir: str, message: dict[str, Any], door: int) -> int:
    """Pid of the daemon, which has written its first event."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        _daemonize(run_dir, message, write_end, door)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        answer = pipe.read()
    if not answer:
        fail("the agent ended at once; see %s/agent.err" % run_dir)
    return int(answer)


def _daemonize(run_dir: str, message: dict[str, Any], write_end: int, door: int) -> NoReturn:
    spec: Spec = message["spec"]
    # Who reads agent.pid may end us at once: that waits until `main` can say that it was stopped.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    log_to(os.path.join(run_dir, "agent.err"))
    code = 1
    try:
        from .attempt import Attempt

        write_json(os.path.join(run_dir, "agent.pid"), holder_of(os.getpid(), attempt=spec["attempt"]))
        event(
            run_dir, Event.STARTED, pid=os.getpid(), attempt=spec["attempt"], node=spec["node"], version=VERSION
        )  # fmt: skip
        # Our part of the lock: were `start` killed before anybody can know of us, another one would begin the attempt
        # a second time. Kept any longer it would last as long as the attempt.
        os.close(door)
        os.write(write_end, str(os.getpid()).encode())
        os.close(write_end)
        Attempt(run_dir, spec, message.get("secrets", {}), message.get("notify")).main()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)
