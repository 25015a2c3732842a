"""The stacks of ranks that hang, into their own logs, with what the system gives: SIGABRT and faulthandler.

PYTHONFAULTHANDLER=1 in the environment of a rank makes Python write the stacks of all its threads to stderr, which
is the rank's log, also while a thread is stuck in C code. The process ends with it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal

from ..machine.processes import tree
from ..oslib import stat


def state_of(pid: int) -> str:
    """The letter of /proc/<pid>/stat: R S D T t Z …; "?" when there is no such process."""
    seen = stat(pid)
    return seen[0] if seen else "?"


def describe(pid: int) -> str:
    """Program, state and the kernel function in which the process waits."""
    return "process %d (%s), state %s, waits in %s" % (
        pid, _read(pid, "comm"), state_of(pid), _read(pid, "wchan").strip("0") or "user space",
    )  # fmt: skip


def dump(pids: dict[str, int], why: str) -> None:
    """`pids` are the main processes of ranks by the path of their log. Notes there where every process of theirs is,
    then has Python write the stacks.

    All get the signal at once, since torchrun ends the other ranks when it sees one end. A stopped process is woken,
    or the signal would wait with it. The parent, our `rank`, is only woken: it has to tell how the rank ended.
    """
    ours: list[int] = []
    parents: list[int] = []
    for path, main in pids.items():
        found = tree(main)
        text = "".join("nexa: %s\n" % line for line in (why, *map(describe, found)))
        with contextlib.suppress(OSError), open(path, "ab", buffering=0) as log:
            log.write(("\n" + text + "nexa: stacks of its threads (SIGABRT):\n").encode())
        for pid in found:
            _without_core(pid)
        seen = stat(main)
        parents += [seen[1]] if seen else []
        ours += found
    for pid in ours:
        _send(pid, signal.SIGABRT)
    for pid in (*ours, *parents):
        _send(pid, signal.SIGCONT)


def _without_core(pid: int) -> None:
    """SIGABRT would write all of its memory to the disk, or pipe it to a collector of core files."""
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, resource.prlimit(pid, resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError), open("/proc/%d/coredump_filter" % pid, "w") as file:
        file.write("0")


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _read(pid: int, name: str) -> str:
    try:
        with open("/proc/%d/%s" % (pid, name)) as file:
            return file.read().strip()
    except OSError:
        return "?"
