"""Small things that the other modules share: files, events, clocks, the identity of a process."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat as statistic
import sys
import time
from typing import Any, BinaryIO, NoReturn

POLL_S = 0.05
KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "LD_LIBRARY_PATH", "TMPDIR", "NEXA_HOST", "NEXA_IMDS")
"""Variables of this machine that a run sees."""
NOTICE = "NEXA_NOTICE"
"""Variable that names the file in which a scheduler's notice is written down (machine/slurm_node.py)."""
KILL_WAIT_S = 30
"""Seconds from a notice of Slurm's to SIGKILL, by its default."""
OF_STEP = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
           "SLURM_RESTART_COUNT")  # fmt: skip
"""Variables of a scheduler's step that the ranks get too: their share of the node, and which job they are of. Of others
a library would conclude that Slurm starts the ranks."""
ROOM = ".room"
"""Reserve file in the run folder, given up when the disk is full and something has to be written."""
JSON_BYTES = 64 << 20
PAID = "paid_until"
"""File that says until when the run's money lasts, by `boot_clock`. Without it nobody has set an end."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl
"""Looked up once: between fork and exec as little as possible may run."""


def set_subreaper() -> None:
    """Orphans among our descendants become our children."""
    _PRCTL(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Linux sends us SIGKILL when the parent ends, so that a killed torchrun leaves no rank behind. A parent that ended
    before we asked for that is no longer ours."""
    _PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps; not moved by a clock that is set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def inherited(path: list[str]) -> dict[str, str]:
    """Variables of the agent's environment that a run inherits; `path` are folders for its PATH, before all that are
    there."""
    wanted = (*KEPT, *(OF_STEP if NOTICE in os.environ else ()))
    found = {name: os.environ[name] for name in wanted if name in os.environ}
    known = found.get("PATH", os.defpath).split(os.pathsep)
    return {**found, "PATH": os.pathsep.join([*(folder for folder in path if folder not in known), *known])}


def agent_path() -> str:
    """The file that this module was loaded from: agent.pyz, or the folder of the package."""
    package = os.path.dirname(os.path.abspath(__file__))
    above = os.path.dirname(package)
    return above if os.path.isfile(above) else package


def fail(message: str) -> NoReturn:
    """The answer of a command that cannot do what it was asked for."""
    print(json.dumps({"error": message}))
    sys.exit(1)


def write_json(path: str, data: Any) -> None:
    """Whole or not at all, also when the machine loses power."""
    temporary = unfinished(path, os.getpid())
    try:
        with open(temporary, "w") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def unfinished(path: str, pid: int) -> str:
    """Name of the file that `pid` writes before it becomes `path`: a process that is killed while it writes leaves it
    behind."""
    return "%s.%d.tmp" % (path, pid)


def read_json(path: str, default: Any = None) -> Any:
    """Read a JSON file; `default` where there is none, or nothing whole."""
    try:
        return json.loads(read_at(path, 0, JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return default


def read_at(path: str, offset: int, size: int) -> bytes:
    """Bytes of a plain file; none where it is no such file, or is not there. A rank can put there what it likes: a
    pipe must not keep the agent waiting."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        left = min(size, found.st_size - offset) if statistic.S_ISREG(found.st_mode) else 0
        return os.pread(fd, left, offset) if left > 0 else b""
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(fd)


def event(run_dir: str, name: str, **fields: Any) -> bool:
    """One line in agent.jsonl; a single O_APPEND write, so that ranks and agent may write at once.

    False where it could not be written (disk full): that must not end a run.
    """
    line = (json.dumps({"event": name, "at": time.time(), **fields}) + "\n").encode()
    try:
        fd = os.open(os.path.join(run_dir, "agent.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        return False
    try:
        return os.write(fd, line) == len(line)
    except OSError:
        return False
    finally:
        os.close(fd)


def say(out: BinaryIO, header: dict[str, Any]) -> None:
    """One line of JSON: the header of a frame."""
    out.write(json.dumps(header).encode() + b"\n")


def log_to(path: str) -> None:
    """What we write to stdout and stderr goes to the end of this file from here on."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if log > 2:
        os.close(log)


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started: with the pid it names a process for good."""
    found = stat(pid)
    return None if found is None or found[0] in "ZX" else found[2]


def stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent, start time in clock ticks; None when there is no such process."""
    try:
        with open("/proc/%d/stat" % pid, errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return fields[0], int(fields[1]), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def holder_of(pid: int, **fields: Any) -> dict[str, Any]:
    """Contents of a pid file, so that `alive` is not taken in by a pid that was given away again."""
    return {"pid": pid, "start_time": start_time(pid), **fields}


def alive(holder: Any) -> bool:
    return bool(holder) and start_time(holder["pid"]) == holder["start_time"]


def children_of(pid: int) -> list[int]:
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def newest_attempt(run_dir: str) -> int:
    """Number of the newest attempt that was ever started here; 0 without one."""
    number = int(read_json(os.path.join(run_dir, "spec.json"), {}).get("attempt", 0))
    return max(number, int(read_json(os.path.join(run_dir, "generation"), 0)))
