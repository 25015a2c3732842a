"""Reads a log of any size, with lines of any length, in bounded memory: forwards, from a time, from its end. A line
over MAX_LINE_BYTES comes in pieces, each of them a line."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.run import files
from nexa_dist.run.logs.mirror import INDEX, MAX_LINE_BYTES, cut

BLOCK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Chunk:
    """Lines without their newlines."""

    lines: list[bytes]
    times: list[float | None]
    """Unix time by which each line was there, where it is known; empty unless asked for."""


class Times:
    """The time index of a log, from its beginning; it may grow while it is read."""

    def __init__(self, log: Path) -> None:
        self.path = log.with_name(log.name + INDEX)
        self.position = 0
        self.rows: deque[tuple[float, int]] = deque()
        self.row = (0.0, 0)

    def next(self) -> tuple[float, int] | None:
        """The next (unix time, bytes that were there); None at the end of what there is."""
        if not self.rows:
            self._more()
        return self.rows.popleft() if self.rows else None

    def _more(self) -> None:
        try:
            with files.opened(self.path) as file:
                file.seek(self.position)
                data = file.read(MAX_LINE_BYTES)
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.position += len(whole)
        for line in whole.split(b"\n"):
            try:
                unix, size = line.split()
                self.rows.append((float(unix), int(size)))
            except ValueError:  # a full disk or a lost machine left half a line
                continue

    def by(self, offset: int) -> float | None:
        """Unix time at which the bytes up to `offset` were there. Offsets are asked for in rising order."""
        while self.row[1] < offset:
            row = self.next()
            if row is None:
                return None
            self.row = row
        return self.row[0]


class Reader:
    """One log from `offset` on; each `read` goes on where the last one stopped."""

    def __init__(
        self, path: Path, offset: int = 0, pattern: re.Pattern[bytes] | None = None, timed: bool = False
    ) -> None:
        self.path, self.offset, self.pattern = path, offset, pattern
        self.times = Times(path) if timed else None
        self.pending = b""
        """The beginning of a line, or of a piece; it ends at `offset`."""

    def read(self, *, final: bool, at_most_bytes: int | None = None) -> Iterator[Chunk]:
        """Read what is there; with `final` also a last line without its newline."""
        left = at_most_bytes
        try:
            if os.stat(self.path).st_size == self.offset and not final:
                return
            file = files.opened(self.path)
        except FileNotFoundError:
            return
        with file:
            while left is None or left > 0:
                data = os.pread(file.fileno(), BLOCK_BYTES, self.offset)
                if not data:
                    break
                start = self.offset - len(self.pending)
                *lines, rest = (self.pending + data).split(b"\n")
                pieces = max(len(rest) - 1, 0) // MAX_LINE_BYTES * MAX_LINE_BYTES
                self.pending, self.offset = rest[pieces:], self.offset + len(data)
                yield from self._chosen([*lines, rest[:pieces]] if pieces else lines, start)
                left = None if left is None else left - len(data)
        if final and self.pending:
            rest, self.pending = self.pending, b""
            yield from self._chosen([rest], self.offset - len(rest))

    def _chosen(self, lines: list[bytes], start: int) -> Iterator[Chunk]:
        """The lines that match; the first begins at `start`."""
        search = self.pattern.search if self.pattern else None
        found, times = [], list[float | None]()
        if self.times is None:
            found, lines = [line for line in cut(lines) if search is None or search(line)], []
        for line in lines:
            for piece in cut([line]):
                start += len(piece)
                if search is None or search(piece):
                    found.append(piece)
                    times.append(self.times.by(start) if self.times else None)
            start += 1
        if found:
            yield Chunk(found, times)


def offset_at(log: Path, unix: float) -> int:
    """Offset at which a reader begins that wants what was written after `unix`: at the line that was not whole by
    then."""
    times, offset = Times(log), 0
    row = times.next()
    while row is not None and row[0] <= unix:
        offset = row[1]
        row = times.next()
    found = log.stat()
    if row is None and found.st_mtime <= unix:  # no row is as young as that, nor is the file
        return found.st_size
    with files.opened(log) as file:
        low = max(0, offset - MAX_LINE_BYTES)
        newline = os.pread(file.fileno(), offset - low, low).rfind(b"\n")
    return low + newline + 1 if newline >= 0 or low == 0 else offset


def tail_offset(log: Path, lines: int, pattern: re.Pattern[bytes] | None, floor: int) -> int:
    """Offset at which the last `lines` lines begin (of those that match), at or behind `floor`, where a line begins."""
    with files.opened(log) as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        if lines == 0:
            return size if _ends(fd, size) else next(_backwards(fd, floor, size), (size, size))[0]
        for start, end in _backwards(fd, floor, size):
            lines -= pattern is None or _matches(fd, start, end, pattern)
            if lines == 0:
                return start
    return floor


def _ends(fd: int, size: int) -> bool:
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"


def _backwards(fd: int, floor: int, size: int) -> Iterator[tuple[int, int]]:
    """(first byte, newline) of each line, last line first."""
    end = high = size - 1 if size and _ends(fd, size) else size
    while high > floor:
        low = max(floor, high - BLOCK_BYTES)
        data = os.pread(fd, high - low, low)
        at = data.rfind(b"\n")
        while at >= 0:
            yield low + at + 1, end
            end = low + at
            at = data.rfind(b"\n", 0, at)
        high = low
    if size > floor:
        yield floor, end


def _matches(fd: int, start: int, end: int, pattern: re.Pattern[bytes]) -> bool:
    """Tell whether a piece of this line matches."""
    pieces = (
        os.pread(fd, min(MAX_LINE_BYTES, end - at), at) for at in range(start, max(end, start + 1), MAX_LINE_BYTES)
    )
    return any(map(pattern.search, pieces))
