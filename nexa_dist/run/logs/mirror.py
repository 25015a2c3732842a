"""The copy of the nodes' logs on the controller: `logs/<node>/<file of the run folder>`, byte for byte."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from nexa_dist.run import files

MAX_LINE_BYTES = 64 * 1024
INDEX = ".times"
"""Ends the name of a log's time index: lines `<unix seconds> <bytes that were there>`."""

TAIL = ".tail"
"""Ends the name of the last bytes of a log that did not come in time: what explains a failure is there."""

EVENTS = "agent.jsonl"
PER_MACHINE = (EVENTS, "agent.err")
"""Files that all attempts write to: a machine that replaces another begins them anew."""


def log_tail(path: Path, size: int) -> bytes:
    """The last bytes of a log, nothing where it cannot be read. Of one that is not all here they lie beside it."""
    kept = path.with_name(path.name + TAIL)
    return files.tail(kept if kept.exists() else path, size)


Marks = dict[str, int]
"""Byte offset behind the last whole line, by log file."""


def cut(lines: list[bytes]) -> list[bytes]:
    """The lines as every reader has them: one over MAX_LINE_BYTES in pieces, each of them a line."""
    if all(len(line) <= MAX_LINE_BYTES for line in lines):
        return lines
    return [line[at : at + MAX_LINE_BYTES] for line in lines for at in range(0, len(line) or 1, MAX_LINE_BYTES)]


def sizes(folder: Path) -> dict[Path, int]:
    """Bytes of every file below it. Another reader may just give one of them another name (`put_aside`)."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            seen = path.stat()
            if stat.S_ISREG(seen.st_mode):
                found[path] = seen.st_size
    return found


def marks(folder: Path) -> Marks:
    """Offsets at which to go on reading the files of a mirror: behind the last newline, so that a line comes whole."""
    found: Marks = {}
    for path in sizes(folder):
        with contextlib.suppress(FileNotFoundError), files.opened(path) as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - MAX_LINE_BYTES)
            file.seek(start)
            tail = file.read(MAX_LINE_BYTES)
            cut = tail.rfind(b"\n") + 1
            found[str(path.relative_to(folder))] = start + (cut or (len(tail) if start else 0))
    return found


def put_aside(path: Path, data: bytes) -> None:
    """Gives the file another name (`agent.1.err`) when it does not begin as `data` does: another machine wrote it."""
    with contextlib.suppress(FileNotFoundError):
        with files.opened(path) as file:
            head = file.read(len(data))
        if head and not (data.startswith(head) or head.startswith(data)):
            names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in range(1, 10000))
            path.rename(next(name for name in names if not name.exists()))


@dataclass
class Mirror:
    """The copy of one node's logs, and how far this reader has come. Bytes are written at their own offsets, so two
    readers of the same run do no harm, and a file here is always the beginning of the one on the node."""

    folder: Path
    seen: Marks
    partial: dict[str, bytes] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Files of which a write failed. What comes behind the gap is not written, so that a later reader fills it."""
    had: Marks = field(init=False)
    """The sizes that we found: the tail behind the last newline is read again, and is nothing new."""

    def __post_init__(self) -> None:
        found = {str(path.relative_to(self.folder)): size for path, size in sizes(self.folder).items()}
        self.had = {name: found[name] for name in self.seen if name in found}

    def store(self, source: str, offset: int, data: bytes) -> str:
        """Writes the bytes; answers what went wrong, the first time that something did."""
        self.seen[source] = offset + len(data)
        if source in self.broken or self.seen[source] <= self.had.get(source, 0):
            return ""
        path = self.folder / source
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if offset == 0 and source in PER_MACHINE:
                put_aside(path, data)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                rest = memoryview(data)
                while rest:
                    done = os.pwrite(fd, rest, offset)
                    offset, rest = offset + done, rest[done:]
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            first = not self.broken
            self.broken.add(source)
            return str(error) if first else ""
        return ""

    def split(self, source: str, data: bytes) -> list[bytes]:
        """The lines that the bytes complete, as `cut` has them."""
        *lines, rest = (self.partial.get(source, b"") + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES and b"\r" in rest:  # a progress bar: only its last state is of use
            rest = rest[rest.rfind(b"\r", 0, -1) + 1 :]
        *pieces, self.partial[source] = cut([rest])
        return [*cut(lines), *pieces]

    def state(self, source: str) -> bytes:
        """State of a line that has not ended and was begun anew with carriage returns: a progress bar."""
        rest = self.partial.get(source, b"")
        return rest.rstrip(b"\r").rpartition(b"\r")[2] if b"\r" in rest else b""

    def pass_over(self, source: str, data: bytes) -> int:
        """Pass over lines that nobody will see, as `split` would cut them; returns how many they are."""
        before = b"" if b"\n" in data else self.partial.get(source, b"")
        self.partial[source] = (before + data[data.rfind(b"\n") + 1 :])[-MAX_LINE_BYTES:]
        return data.count(b"\n")

    def flush(self) -> list[tuple[str, bytes]]:
        """Rest of files that do not end in a newline."""
        new = {source for source, size in self.seen.items() if size > self.had.get(source, 0)}
        left = [(source, text) for source, text in self.partial.items() if text and source in new]
        self.partial.clear()
        return left
