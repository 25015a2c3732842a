"""What /proc says of processes: their environment, their line of parents, what a node of a local cluster holds."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One living process as this machine numbers it."""

    pid: int
    parent: int
    state: str
    """One letter of ps: T is stopped by a signal."""
    started_ticks: int
    """Clock ticks since boot: with the pid it names a process for good."""


def table() -> dict[int, Process]:
    """Every living process of this machine; zombies are dead."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := look(int(name))) is not None:
            found[process.pid] = process
    return found


def look(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        process = Process(pid, int(fields[1]), fields[0], int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None
    return None if process.state in "ZX" else process


def environment(pid: int) -> dict[bytes, bytes]:
    """What `pid` was started with; empty when it is gone or not ours to read."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return {name: value for name, mark, value in (word.partition(b"=") for word in words) if mark}


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def namespace(pid: int, kind: str) -> int:
    """Number of a namespace of `pid`; 0 when it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return 0


def inner_pid(pid: int) -> int:
    """The number that `pid` has in its own pid namespace; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except OSError:
        pass
    return 0


def descendants(of: int, among: dict[int, Process]) -> list[int]:
    children: dict[int, list[int]] = {}
    for process in among.values():
        children.setdefault(process.parent, []).append(process.pid)
    found, todo = [], [of]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


def ancestors(of: int, among: dict[int, Process]) -> list[int]:
    """From the parent of `of` upwards."""
    found = []
    while (process := among.get(of)) and process.parent in among and process.parent not in found:
        of = process.parent
        found.append(of)
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """A signal to each that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def tree(pid: int) -> list[int]:
    """`pid` and all that descends from it."""
    return [pid, *descendants(pid, table())]


def kill_trees(pids: Iterable[int]) -> None:
    """SIGKILL to each with all its descendants. Stopped first, so that none can start another meanwhile."""
    roots = list(pids)
    found, stopped = set(roots), set[int]()
    for _ in range(100):
        if not found - stopped:
            break
        send(found - stopped, signal.SIGSTOP)
        stopped |= found
        among = table()
        found = {pid for root in roots for pid in (root, *descendants(root, among))}
    send(found | stopped, signal.SIGKILL)
