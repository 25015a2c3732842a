"""A container around the launcher of a run: what runs inside it, and that none of it stays.

The engine (docker, podman) shares our pid namespace, so a rank is the same process for both: signals, stacks, the walk
and the kill are as without a container. The engine's daemon is no child of ours, however; hence `inside`, which ends
with the agent, and `remove`, which asks the engine itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import Any

from ..oslib import POLL_S, alive, die_with_parent, holder_of, read_json, set_subreaper, write_json

NOTE, LAUNCHER = "container.json", "launcher.json"
"""Files in the run folder: the engine's program; the launcher's process, while it lives in a container."""
LABEL = "nexa.run_dir"
"""Label of a container; its value is the folder of its run on this node."""
ENGINE_S = 30.0
"""Longest wait for one answer of an engine."""
STOPPED = 143


def note(run_dir: str, spec: dict[str, Any] | None) -> None:
    """Write down the engine before it is asked for anything: a kill leaves nothing unknown. Its mounts are made."""
    if spec:
        for folder in spec["folders"]:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        write_json(os.path.join(run_dir, NOTE), {"program": spec["program"], "remove": spec["remove"]})


def remove(run_dir: str) -> str:
    """End and remove the containers of the run, if it has had any. Returns why one may be left, else ""."""
    noted = read_json(os.path.join(run_dir, NOTE))
    if not noted:
        return ""
    program = noted["program"]
    listed = [program, "ps", "--all", "--quiet", "--no-trunc", "--filter", "label=%s=%s" % (LABEL, run_dir)]
    said = ""
    for _ in range(3):  # one that was being created is there a moment later
        code, out = _ask(listed)
        if code:
            return out
        if not out.split():
            return ""
        said = _ask([program, *noted["remove"], *out.split()])[1]
        time.sleep(POLL_S)
    return said if _ask(listed)[1].split() else ""


def _ask(argv: list[str]) -> tuple[int, str]:
    """Exit code and words of an engine: its answer, or what it complains of."""
    import subprocess  # commands that find no container do without it

    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=ENGINE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stderr if done.returncode else done.stdout).strip()[-1000:]


def hold_launcher(run_dir: str) -> None:
    """Suspend the launcher in the container; to its engine's client SIGSTOP would mean nothing."""
    launcher = read_json(os.path.join(run_dir, LAUNCHER))
    if alive(launcher):
        with contextlib.suppress(OSError):
            os.kill(launcher["pid"], signal.SIGSTOP)


def inside(argv: list[str]) -> int:
    """Run `argv` as the container's only program. It ends with the agent, and does not begin once that is gone, is
    told to stop, or is of an older attempt."""
    run_dir, attempt = os.environ["NEXA_RUN_DIR"], int(os.environ["NEXA_ATTEMPT"])
    agent = read_json(os.path.join(run_dir, "agent.pid"))
    newest = read_json(os.path.join(run_dir, "generation"), attempt)
    if not alive(agent) or newest != attempt or os.path.exists(os.path.join(run_dir, "stop.attempt_%d" % attempt)):
        return STOPPED
    import subprocess

    set_subreaper()
    us = os.getpid()
    try:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with_parent(us))
    except OSError as error:
        print("nexa: %s: %s" % (argv[0], error), file=sys.stderr, flush=True)
        return 127
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child.pid, number))
    write_json(os.path.join(run_dir, LAUNCHER), holder_of(child.pid))
    threading.Thread(target=_end_with, args=(agent, us), daemon=True).start()
    while True:
        pid, status = os.wait()  # orphans too: nobody else here would
        if pid == child.pid:
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _end_with(agent: dict[str, Any], us: int) -> None:
    """SIGKILL to us, and so to the launcher and its ranks, once the agent is gone."""
    fd = -1
    with contextlib.suppress(OSError, AttributeError):  # a kernel before 5.3, or a profile that forbids it
        fd = os.pidfd_open(agent["pid"])
    while alive(agent):
        if fd < 0:
            time.sleep(10 * POLL_S)
        else:
            select.select([fd], [], [], 5.0)
    os.kill(us, signal.SIGKILL)
