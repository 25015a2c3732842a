"""The processes of a run: finding them all, and ending them all."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ..oslib import alive, read_json, start_time, stat
from . import cgroup, container

WARM_FILE = "warm.json"
"""File that names the warm interpreter which waits for the next attempt."""


def run_processes(run_dir: str, *, warm: bool = False) -> list[int]:
    """Pids of this run: what carries NEXA_RUN_DIR, descends from its agent or is in its control group, with all
    their descendants. The agent itself, and we, are not among them. The warm interpreter that waits for the next
    attempt counts only with `warm`; ranks that it forked always do."""
    marker, warm_marker = (b"\0%s=%s\0" % (name, os.fsencode(run_dir)) for name in (b"NEXA_RUN_DIR", b"NEXA_WARM_DIR"))
    holder = read_json(os.path.join(run_dir, "agent.pid"))
    agent = holder["pid"] if alive(holder) else 0
    parents: dict[int, int] = {}
    found = {agent} if agent else set()
    in_group, spared = set(cgroup.members(run_dir)), {agent, os.getpid()}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid, seen = int(name), stat(int(name))
        if seen is None or seen[0] in "ZX" or seen[1] == 2:  # gone, or a thread of the kernel
            continue
        parents[pid] = seen[1]
        if pid in in_group:
            found.add(pid)
            continue
        try:
            with open("/proc/%d/environ" % pid, "rb") as file:
                environment = b"\0" + file.read() + b"\0"
        except OSError:
            continue
        if warm_marker in environment and not warm:
            spared |= _waiting(run_dir)
        if marker in environment or warm_marker in environment:
            found.add(pid)
    more = found
    while more:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
    return sorted(found - spared)


def _waiting(run_dir: str) -> set[int]:
    seen = {"pid": 0, "start_time": 0, **read_json(os.path.join(run_dir, WARM_FILE), {})}
    return {seen["pid"]} if alive(seen) else set()


def tree(pid: int) -> list[int]:
    """`pid` and its descendants that are alive."""
    parents = {}
    for name in os.listdir("/proc"):
        seen = stat(int(name)) if name.isdigit() else None
        if seen and seen[0] not in "ZX":
            parents[int(name)] = seen[1]
    found, more = {pid} & parents.keys(), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return sorted(found)


def kill_run(run_dir: str, timeout_s: float = 10.0, *, warm: bool = False) -> tuple[int, list[int]]:
    """SIGKILL until nothing of the run is left. Returns (how many were ended, what is still there)."""
    ended: dict[int, int | None] = {}
    end = time.monotonic() + timeout_s
    while True:
        going = {pid for pid, born in ended.items() if born is not None and start_time(pid) == born}
        left = sorted({*run_processes(run_dir, warm=warm), *going})  # at its end a process has no environment any more
        if not left or time.monotonic() > end:
            if not left:
                cgroup.remove(run_dir)
                container.remove(run_dir)
            return len(ended), left
        cgroup.kill(run_dir)
        for pid in left:
            ended.setdefault(pid, start_time(pid))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove_tmp(run_dir: str) -> None:
    """The temporary folder of the run, also when its agent was killed."""
    path = read_json(os.path.join(run_dir, "tmp.json"))
    if path and os.path.basename(path).startswith("nexa-run-") and os.path.isdir(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
