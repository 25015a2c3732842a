"""Answers as they come, a line each: what is in it is never asked again, however the process dies."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from nexa_dist.stages.row_files import Id

SYNC_EVERY = 64
"""Lines between two fsyncs: what a power failure may cost. A kill of the process costs nothing."""


class Journal:
    """An append-only JSONL file. A last line that is torn is dropped when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._unsynced = 0
        os.ftruncate(self._fd, self._whole())
        self._end = os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        os.close(self._fd)

    def append(self, row: Id, record: Mapping[str, Any]) -> int:
        """One line, in one write where the kernel takes it. Returns its offset."""
        return self._write((json.dumps({"id": row, **record}, ensure_ascii=True, default=str) + "\n").encode())

    def take(self, other: Path) -> int:
        """Append the whole lines of another journal that are not in this one. Returns how many these are."""
        seen = {hashlib.sha256(line).digest() for line in self._bytes()}
        with other.open("rb") as file:
            new = (line for line in file if hashlib.sha256(line).digest() not in seen and _is_whole(line))
            return sum(1 for line in new if self._write(line) >= 0)

    def _write(self, data: bytes) -> int:
        line = memoryview(data)
        begin, self._end = self._end, self._end + len(line)
        while line:
            line = line[os.write(self._fd, line) :]
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self.sync()
        return begin

    @property
    def size(self) -> int:
        """Bytes of all lines."""
        return self._end

    def sync(self) -> None:
        os.fsync(self._fd)
        self._unsynced = 0

    def at(self, offset: int) -> dict[str, Any]:
        """The line at an offset."""
        got = b""
        while not got.endswith(b"\n"):
            end = (more := os.pread(self._fd, 1 << 16, offset + len(got))).find(b"\n")
            got += more if end < 0 else more[: end + 1]
            if not more:
                break
        found: dict[str, Any] = json.loads(got)
        return found

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset, line) of all, in the order of writing."""
        offset = 0
        for line in self._bytes():
            yield offset, json.loads(line)
            offset += len(line)

    def _bytes(self) -> Iterator[bytes]:
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            yield from file
        os.lseek(self._fd, 0, os.SEEK_END)

    def _whole(self) -> int:
        """Bytes of the lines that are whole and JSON; what stands behind the first that is not was torn with it."""
        return sum(map(len, itertools.takewhile(_is_whole, self._bytes())))


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "id" in json.loads(line)
    except (ValueError, TypeError):
        return False
