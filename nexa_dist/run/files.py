"""Files that are whole or absent, and the lock of a cluster."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nexa_dist.errors import NexaError

LOOK_LIMIT_S = 60.0
"""Nobody looks for so long whether a file is locked, unless he was stopped meanwhile."""


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    write_bytes(path, text.encode(), mode)


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Temporary sibling, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, data: Any, mode: int = 0o644) -> None:
    write_text(path, json.dumps(data, indent=2, sort_keys=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """Parsed content. Raises NexaError when the file is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NexaError(f"cannot read {path}: {error}") from error


def append_json(path: Path, record: dict[str, Any]) -> None:
    """One line, fsynced before we go on: a journal that is behind its acts is worth nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        line = memoryview((json.dumps(record) + "\n").encode())
        while line:  # a write may take only a part
            line = line[os.write(fd, line) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file; a torn last line (killed while writing) is passed over."""
    records: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


@contextlib.contextmanager
def locked(path: Path, verb: str) -> Iterator[None]:
    """The kernel releases the lock when its holder dies, however it dies; the text only says who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        if not take(file):
            file.seek(0)
            raise NexaError(
                f"{path.parent.name} is in use: {file.read().strip() or 'holder unknown'}",
                hint="wait for it to end, or end that process; the lock goes with it",
            )
        file.truncate(0)
        who = f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"
        file.write(f"{who} nexa {verb} pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}")
        file.flush()
        yield


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
    """Whether a living process holds the lock; looking does not take it."""
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
