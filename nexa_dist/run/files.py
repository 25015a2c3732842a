"""Files that are whole or absent, and the lock of a cluster. What is made here is for nobody else on this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nexa_dist.errors import NexaError
from nexa_dist.shape import Check, Strange, anything

FILE_BYTES = LINES_BYTES = 64 << 20
LINE_BYTES = 1 << 20
SANE = anything(40, 1_000_000, LINE_BYTES)
"""Bounds of JSON that a program can go through without an end of its stack or its memory."""
LOOK_LIMIT_S = 60.0
"""Seconds that no look at a lock takes, unless its process was stopped meanwhile."""


def close_to_others(*folders: Path) -> None:
    """Close to other users what this process and its children make from now on, and these folders of ours, which an
    older nexa left open, if they are there."""
    os.umask(0o077)
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o077:
                folder.chmod(found.st_mode & 0o700)


def close_tree(top: Path) -> None:
    """The same for all that is below `top`, made by others who set modes of their own."""
    for folder, _, names in os.walk(top):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat().st_mode
                if found & 0o077 and not stat.S_ISLNK(found):
                    path.chmod(stat.S_IMODE(found) & 0o700)


def hide_from_git(folder: Path) -> None:
    """Keys, states and logs in it are not for `git add -A`. A .gitignore that is there is left as it is."""
    if folder.is_dir() and not os.path.lexists(folder / ".gitignore"):
        write_text(folder / ".gitignore", "*\n")


def make_folder(path: Path) -> None:
    """The folder and the missing ones above it, 0700 each."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    write_bytes(path, text.encode(), mode)


def write_bytes(path: Path, data: bytes, mode: int = 0o600) -> None:
    """A sibling of this thread's own, fsync, rename. Raises OSError, and leaves nothing beside what was there."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any, mode: int = 0o600) -> None:
    write_text(path, json.dumps(data, indent=2, sort_keys=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """Parsed content. Raises NexaError when the file is missing, torn, too large or no plain file."""
    try:
        return SANE(json.loads(_plain(path, FILE_BYTES)))
    except (OSError, ValueError, RecursionError) as error:
        raise NexaError(f"cannot read {path}: {str(error)[:200] or type(error).__name__}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read JSON as `read_json`, for what is an object in all our files."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise NexaError(f"{path} is damaged: it holds no object")
    return found


def object_or_empty(path: Path) -> dict[str, Any]:
    """Read an object as `read_object`; empty where there is none, or none that can be read."""
    try:
        return read_object(path)
    except NexaError:
        return {}


def read_shape(path: Path, check: Check, hint: str = "") -> Any:
    """Read JSON of this shape as `read_json`. Raises NexaError when it has not."""
    try:
        return check(read_json(path))
    except Strange as error:
        raise NexaError(f"{path} is damaged: {error}", hint=hint) from None


def read_text(path: Path, most: int = 4096) -> str:
    """The beginning of a small file of ours; empty where it cannot be read."""
    try:
        return _plain(path, most, cut=True).decode(errors="replace")
    except (OSError, ValueError):
        return ""


def opened(path: Path) -> IO[bytes]:
    """A plain file, to be read: to open a pipe would wait, and a device has no end. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise FileNotFoundError(errno.ENOENT, "it is no plain file", str(path))


def _plain(path: Path, most: int, cut: bool = False) -> bytes:
    """Read a plain file. Raises OSError; ValueError for more than `most`."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most and not cut:
            raise ValueError(f"it has {size} bytes")
        return file.read(most)


def tail(path: Path, size: int) -> bytes:
    """The last bytes of a plain file; nothing where it cannot be read."""
    try:
        with opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)
    except OSError:
        return b""


def append_json(path: Path, record: dict[str, Any]) -> None:
    """One line, fsynced before we go on: a journal that is behind its acts is worth nothing. Behind half a line (killed
    while writing) it begins a new one."""
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        line = memoryview((torn * "\n" + json.dumps(record) + "\n").encode())
        while line:  # a write may take only a part
            line = line[os.write(fd, line) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file of ours. What is none is passed over: a line that was torn by a kill or a full disk, or
    overwritten; and all that lies behind LINES_BYTES. A file that cannot be read has none."""
    records: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        for line in _plain(path, LINES_BYTES, cut=True).splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                found = SANE(json.loads(line)) if len(line) <= LINE_BYTES else None
                if isinstance(found, dict):
                    records.append(found)
    return records


@contextlib.contextmanager
def locked(path: Path, verb: str) -> Iterator[None]:
    """The kernel releases the lock when its holder dies, however it dies; the text only says who holds it."""
    make_folder(path.parent)
    with _opened(path) as file:
        if not take(file):
            raise NexaError(
                f"{path.parent.name} is in use: {_holder(file, path)}",
                hint="wait for it to end, or end that process; the lock goes with it",
            )
        who = f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"
        words = f"{who} nexa {verb} pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}"
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its words
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), words.encode(errors="replace"))
        yield


def _opened(path: Path) -> IO[str]:
    """The lock's file, made if need be. Who can open it can hold it, so that is nobody else."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        # A link or a folder is not ours: every command takes the file beside it.
        fd = os.open(path.with_name(f"{path.name}.own"), flags, 0o600)
    if os.fstat(fd).st_uid == os.getuid():
        os.fchmod(fd, 0o600)
    return os.fdopen(fd, "r+", encoding="utf-8", errors="replace")


def _holder(file: IO[str], path: Path) -> str:
    """Holder of the lock: in the words of the command that wrote them, unless the kernel names another process."""
    said, pids = file.read(500).strip(), _pids(file)
    if not pids or any(f" pid {pid} " in said for pid in pids):
        return said or "holder unknown"
    owners = []
    for pid in pids:
        with contextlib.suppress(OSError, KeyError):
            owners.append(f"process {pid} of {pwd.getpwuid(Path('/proc', str(pid)).stat().st_uid).pw_name}")
    held = ", ".join(owners) or f"process {pids[0]}"
    return f"{held} holds {path}, and is no command of nexa that wrote its name there"


def _pids(file: IO[Any]) -> list[int]:
    """Pids of the processes that hold a lock on the file, as far as the kernel tells."""
    mark, found = f":{os.fstat(file.fileno()).st_ino}", []
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if "FLOCK" in words and "->" not in words and words[5].endswith(mark) and words[4] != "0":
                found.append(int(words[4]))
    return found


def take(file: IO[Any]) -> bool:
    """Locks the file for us alone; false when somebody else has it. Who only looks whether it is locked shares it for a
    moment, and is waited for."""
    until = time.monotonic() + LOOK_LIMIT_S
    while not _locks(file, fcntl.LOCK_EX):
        if not _locks(file, fcntl.LOCK_SH) or time.monotonic() > until:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(0.01)
    return True


def held(path: Path) -> bool:
    """Tell whether a living process holds the lock; looking does not take it."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        return not _locks(file, fcntl.LOCK_SH)


def _locks(file: IO[Any], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
