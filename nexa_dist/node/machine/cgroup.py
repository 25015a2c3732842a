"""A control group (v2) for the processes of a run, where we may make one; without one the walk has to do.

It also finds a process that cleared its environment and outlived the agent, and ends all at once.
"""

from __future__ import annotations

import contextlib
import os
import time

from ..oslib import read_json, write_json


def own() -> tuple[str, str] | None:
    """Mount of version 2, and below it the group in which we are; None where it is not mounted."""
    try:
        with open("/proc/self/mounts") as mounts, open("/proc/self/cgroup") as groups:
            mount = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
            return mount, next(line[3:].rstrip("\n") for line in groups if line.startswith("0::"))
    except (OSError, StopIteration):
        return None


def make(run_dir: str) -> str | None:
    """A group of its own for this run, below ours, so that limits on us go on to count. None where we may not."""
    ours = own()
    if ours is None:
        return None
    base = "".join(ours)
    try:
        for name in os.listdir(base):
            if name.startswith("nexa-run-"):  # of a run whose agent was killed; refused where anything is in it
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(base, name))
        group = os.path.join(base, "nexa-run-%d-%d" % (os.getpid(), time.time_ns()))
        os.mkdir(group, 0o700)
    except OSError:
        return None
    write_json(os.path.join(run_dir, "cgroup.json"), group)
    return group


def enter(group: str | None, pid: int = 0) -> None:
    """Moves `pid` (0: us) into the group; its later children are in it from the start."""
    if group:
        with contextlib.suppress(OSError):
            os.makedirs(group, 0o700, exist_ok=True)  # another agent may have taken it for a left-over
            with open(os.path.join(group, "cgroup.procs"), "w") as file:
                file.write(str(pid))


def members(run_dir: str) -> list[int]:
    """Pids in the run's group and below it."""
    found: list[int] = []
    for folder, _, names in os.walk(_of(run_dir) or "/nonexistent"):
        if "cgroup.procs" in names:
            with contextlib.suppress(OSError), open(os.path.join(folder, "cgroup.procs")) as file:
                found += [int(word) for word in file.read().split()]
    return [pid for pid in found if pid]


def kill(run_dir: str) -> None:
    """SIGKILL to all of the group at once, also to what is being forked (Linux 5.14 and newer)."""
    group = _of(run_dir)
    if group:
        with contextlib.suppress(OSError), open(os.path.join(group, "cgroup.kill"), "w") as file:
            file.write("1")


def remove(run_dir: str) -> None:
    """Removes the group once it is empty."""
    for folder, _, _ in os.walk(_of(run_dir) or "/nonexistent", topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _of(run_dir: str) -> str | None:
    group = read_json(os.path.join(run_dir, "cgroup.json"))
    return group if group and os.path.basename(group).startswith("nexa-run-") and os.path.isdir(group) else None
