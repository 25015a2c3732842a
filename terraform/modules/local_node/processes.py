"""The processes of a node: who belongs to it, and their end. Standard library, Python 3.9+, Linux.

A process belongs to a node when it descends from the node's daemon, has NEXA_HOST=<root>/<node> in its environment, or
logs to the node's sshd.log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 2.0
"""Between TERM and KILL."""
KILL_TIMEOUT_S = 10.0


class HostError(Exception):
    """An expected failure: what happened, and what to do about it."""


@dataclass(frozen=True)
class Process:
    parent: int
    start_ticks: int
    state: str


def processes() -> dict[int, Process]:
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                # The name may hold spaces and brackets: what follows the last bracket is regular.
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                table[int(entry)] = Process(int(fields[1]), int(fields[19]), fields[0])
    return {pid: process for pid, process in table.items() if process.state not in "ZX"}


def descendants(table: dict[int, Process], of: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    queue = list(children.get(of, ()))
    while queue:
        pid = queue.pop()
        found.add(pid)
        queue += children.get(pid, ())
    return found


def own_line(table: dict[int, Process]) -> set[int]:
    """This process and its ancestors: never ended, even when `down` is called from inside the node."""
    line, pid = set(), os.getpid()
    while pid in table and pid not in line:
        line.add(pid)
        pid = table[pid].parent
    return line


def belongs(pid: int, folder: Path) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if os.fsencode(f"NEXA_HOST={folder}") in file.read().split(b"\0"):
                return True
        # sshd writes its title over its environment, but keeps its log.
        return os.readlink(f"/proc/{pid}/fd/2").replace(" (deleted)", "") == str(folder / "sshd.log")
    except OSError:
        return False


def members(folder: Path, daemon: int | None = None) -> set[int]:
    """Every process of the node but this one. `daemon` is its parent of all, if it is known to live."""
    table = processes()
    roots = {pid for pid in table if belongs(pid, folder)} | ({daemon} if daemon in table else set())
    found = set(roots)
    for pid in roots:
        found |= descendants(table, pid)
    return found - own_line(table)


def end(find: Callable[[], set[int]]) -> set[int]:
    """TERM, a short grace, KILL, until `find` sees nothing. Returns the pids seen."""
    seen: set[int] = set()
    start = time.monotonic()
    while alive := find():
        waited_s = time.monotonic() - start
        if waited_s > GRACE_S + KILL_TIMEOUT_S:
            raise HostError(f"still alive after SIGKILL: pids {sorted(alive)}")
        for pid in alive:
            if waited_s > GRACE_S or pid not in seen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if waited_s > GRACE_S else signal.SIGTERM)
        seen |= alive
        time.sleep(0.05)
        reap()
    return seen


def reap() -> set[int]:
    gone = set()
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            gone.add(pid)
    return gone


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
