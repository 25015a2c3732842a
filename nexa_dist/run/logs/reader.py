"""Reads a log of any size, with lines of any length, in bounded memory: forwards, from a time, from its end."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.run import files
from nexa_dist.run.logs.mirror import INDEX, MAX_LINE_BYTES

BLOCK_BYTES = 256 * 1024
OVERLAP_BYTES = 4096
"""In a line that is longer than MAX_LINE_BYTES a pattern finds what is not longer than this, and `$` is also where a
part of it ends."""


@dataclass(frozen=True)
class Chunk:
    """Lines without their newlines. The first may go on with a line that was begun before (not `begins`), the last may
    go on in the next chunk (not `ends`)."""

    lines: list[bytes]
    times: list[float | None]
    """Unix time by which each line was there, where it is known; empty unless asked for."""
    begins: bool = True
    ends: bool = True


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
        """When the bytes up to `offset` were there. Offsets are asked for in rising order."""
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
        """The beginning of a line; it ends at `offset`."""
        self.long_from: int | None = None
        """Where a line began that is longer than MAX_LINE_BYTES and has not ended."""
        self.showing = False
        """Whether that line is shown."""
        self.overlap = b""

    def read(self, *, final: bool, at_most_bytes: int | None = None) -> Iterator[Chunk]:
        """What is there; with `final` also a last line without its newline."""
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
                yield from self._feed(file.fileno(), data)
                self.offset += len(data)
                left = None if left is None else left - len(data)
        if final and self.pending:
            yield from self._chosen([self.pending], self.offset - len(self.pending))
            self.pending = b""

    def _feed(self, fd: int, data: bytes) -> Iterator[Chunk]:
        start, end = self.offset, self.offset + len(data)
        if self.long_from is not None:
            part, newline, data = data.partition(b"\n")
            yield from self._long(fd, part, start, bool(newline))
            if not newline:
                return
            start += len(part) + 1
        start -= len(self.pending)
        *lines, self.pending = (self.pending + data).split(b"\n")
        if lines:
            yield from self._chosen(lines, start)
        if len(self.pending) > MAX_LINE_BYTES:
            part, self.pending = self.pending, b""
            self.long_from = end - len(part)
            yield from self._long(fd, part, self.long_from, False)

    def _chosen(self, lines: list[bytes], start: int) -> Iterator[Chunk]:
        """The lines that match; the first begins at `start`."""
        search = self.pattern.search if self.pattern else None
        if self.times is None:
            found = [line for line in lines if search(line)] if search else lines
            if found:
                yield Chunk(found, [])
            return
        found, times = [], list[float | None]()
        for line in lines:
            start += len(line) + 1
            if search is None or search(line):
                found.append(line)
                times.append(self.times.by(start - 1))
        if found:
            yield Chunk(found, times)

    def _long(self, fd: int, part: bytes, start: int, ends: bool) -> Iterator[Chunk]:
        """A part of a line that is too long to be held. It is shown from its beginning once it matches."""
        assert self.long_from is not None
        if not self.showing and self.pattern and not _found(self.pattern, self.overlap, part):
            self.overlap = (self.overlap + part)[-OVERLAP_BYTES:]
        else:
            for at in range(self.long_from, start, BLOCK_BYTES) if not self.showing else ():
                again = os.pread(fd, min(BLOCK_BYTES, start - at), at)
                yield self._piece(again, at, at == self.long_from, False)
            yield self._piece(part, start, not self.showing and start == self.long_from, ends)
            self.showing = True
        if ends:
            self.long_from, self.showing, self.overlap = None, False, b""

    def _piece(self, text: bytes, start: int, begins: bool, ends: bool) -> Chunk:
        times = [self.times.by(start + len(text))] if self.times else []
        return Chunk([text], times, begins, ends)


def offset_at(log: Path, unix: float) -> int:
    """Where a reader begins that wants what was written after `unix`: at the line that was not whole by then."""
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
    """Where the last `lines` lines begin (of those that match), at or behind `floor`, where a line begins."""
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
    overlap = b""
    for at in range(start, max(end, start + 1), BLOCK_BYTES):
        part = os.pread(fd, min(BLOCK_BYTES, end - at), at)
        if _found(pattern, overlap, part):
            return True
        overlap = (overlap + part)[-OVERLAP_BYTES:]
    return False


def _found(pattern: re.Pattern[bytes], before: bytes, part: bytes) -> bool:
    """Whether it is in the part, with the end of what came `before` it. There `^` is not the beginning of the line."""
    return pattern.search(before + part, 1 if before else 0) is not None
