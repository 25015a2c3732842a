"""What a region has in /proc: to end it, to count it, and to prove that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TERM_GRACE_S = 3.0
KILL_GRACE_S = 120.0


@dataclass(frozen=True)
class Mark:
    """How to know what belongs to a region."""

    folder: Path
    token: str
    """In the environment of every process that was started inside of it."""
    namespace: int | None = None
    """Inode of its network namespace, where something holds that; else the number may have been given anew."""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def namespace(pid: int | str, kind: str = "net") -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


def is_alive(pid: int) -> bool:
    stat = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return bool(stat) and stat[0] not in (b"Z", b"X")


def command(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace(b"\0", b" ").decode(errors="replace").strip()


def processes(mark: Mark) -> list[int]:
    """Every living process in the region or of it, but for this one and those that it descends from."""
    here, mounts_here = namespace("self"), namespace("self", "mnt")
    folder, token = os.fsencode(f"{mark.folder}/"), os.fsencode(f"NEXA_REGION_TOKEN={mark.token}")
    own, found = set(_ancestors()), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in own or not is_alive(int(entry.name)):
            continue
        net = namespace(entry.name)
        inside = net is not None and net == mark.namespace
        started = net != here and bool(mark.token) and token in _read(entry / "environ").split(b"\0")
        mounted = namespace(entry.name, "mnt") != mounts_here and folder in _read(entry / "mountinfo")
        if inside or started or mounted:
            found.append(int(entry.name))
    return found


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        stat = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        pid = int(stat[1]) if stat else 0


def end_all(mark: Mark) -> None:
    """Asks what is left to end, then ends it. Bounded."""
    for number, grace_s in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
        deadline = time.monotonic() + grace_s
        for pid in processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while processes(mark) and time.monotonic() < deadline:
            time.sleep(0.05)


def left(mark: Mark) -> list[str]:
    """What is left of a region, in words; nothing, as it should be, is the empty list."""
    found = [f"process {pid}: {command(pid)[:120]}" for pid in processes(mark)]
    mounts = _read(Path("/proc/self/mountinfo")).decode(errors="replace").splitlines()
    found += [f"mount: {line.split()[4]}" for line in mounts if f"{mark.folder}/" in line]
    if mark.folder.exists():
        found.append(f"folder: {mark.folder}")
    return found


def weigh(pid: int) -> tuple[int, float]:
    """Processes in the pid namespace of `pid`, and their memory (proportional share) in MB."""
    kind, number, kib = namespace(pid, "pid"), 0, 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and kind is not None and namespace(entry.name, "pid") == kind:
            number += 1
            kib += pss_kib(int(entry.name))
    return number, round(kib / 1024, 1)


def pss_kib(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1])
    return 0
