"""Files of a node brought here: gone on with after a kill, checked by SHA-256, and only then in their place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nexa_dist import wire
from nexa_dist.run import files
from nexa_dist.run.ssh.connections import Link
from nexa_dist.shape import Strange

TRIES = 5
"""Connections in a row that bring nothing."""
WRONG = 3
"""Times that a file arrives as another than the node read."""
PAUSE_S = 1.0
GROWN_BYTES = 256 << 20
"""Bytes that may be added to a file, beyond twice its size, from when it was listed to when it is sent."""
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Asked:
    """A file below a folder of a node, its size there and its place here. `mark` names its state there: half a file of
    another one is not gone on with. With the SHA-256 `unless` it is not sent."""

    name: str
    bytes: int
    into: Path
    mark: str
    unless: str = ""


@dataclass(frozen=True)
class Got:
    """Result for one file: the SHA-256 of what is in its place, that it is the one not wanted (`same`), or why not."""

    sha256: str = ""
    bytes: int = 0
    same: bool = False
    why: str = ""


class Receiver:
    """Takes files of one node's `folder`. `parts` is where half of one lies, on the same disk as the places; `replace`
    puts a whole one there. `on_bytes` is told how many came."""

    def __init__(
        self,
        link: Link,
        folder: str,
        parts: Path,
        replace: Callable[[Path, Path], object] = os.replace,
        on_bytes: Callable[[int], object] = int,
    ) -> None:
        self.link, self.folder, self.parts, self.replace, self.on_bytes = link, folder, parts, replace, on_bytes
        self.got: dict[int, Got] = {}
        self.wrong: dict[int, int] = {}
        self.came = 0

    def take(self, asked: Sequence[Asked], seconds: float = float("inf")) -> list[Got]:
        """Take each file, or say why it did not come. Raises OSError when this disk will not have them."""
        until, idle, faults, why = time.monotonic() + seconds, 0, 0, "the link to the node was cut"
        files.make_folder(self.parts)
        while (left := [at for at in range(len(asked)) if at not in self.got]) and max(idle, faults) < TRIES:
            if (rest := until - time.monotonic()) <= 0:
                why = f"not within {seconds:.0f} s"
                break
            before = (self.came, len(left))
            try:
                self._connection(asked, left, rest)
            except Strange as error:
                faults += 1
                why = f"what it sends makes no sense: {error}"
            idle = 0 if before != (self.came, len(asked) - len(self.got)) else idle + 1
            if len(self.got) < len(asked):
                time.sleep(min(PAUSE_S * idle, max(0.0, until - time.monotonic())))
        return [self.got.get(at) or Got(why=why) for at in range(len(asked))]

    def _part(self, one: Asked) -> Path:
        words = "\n".join((self.link.node.name, self.folder, one.name, one.mark))
        return self.parts / hashlib.sha256(words.encode()).hexdigest()[:32]

    def _connection(self, asked: Sequence[Asked], left: Sequence[int], seconds: float) -> None:
        """Receive what one connection brings. Raises Strange."""
        wanted = [{"name": asked[at].name, "off": _size(self._part(asked[at])), "unless": asked[at].unless}
                  for at in left]  # fmt: skip
        stream = self.link.stream("send", self.folder, message={"files": wanted})
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), stream.end)
        timer.start()
        try:
            self._read(stream.out, asked, left)
        except ValueError as error:  # closed by the timer
            if isinstance(error, Strange):
                raise
        finally:
            timer.cancel()
            stream.end()

    def _read(self, out: IO[bytes], asked: Sequence[Asked], left: Sequence[int]) -> None:
        place, file, whole = -1, None, hashlib.sha256()
        with contextlib.ExitStack() as opened:
            while True:
                line = out.readline(wire.FRAME_BYTES + 1)
                if not line.endswith(b"\n") and len(line) <= wire.FRAME_BYTES:
                    return
                header = wire.sent(line)
                if "through" in header:
                    return
                if header["at"] not in range(max(place, 0), len(left)):
                    raise Strange(f"file {header['at']} was not asked for, or was sent before")
                at = left[header["at"]]
                if header["at"] != place:
                    opened.close()
                    place, whole = header["at"], hashlib.sha256()
                    file = opened.enter_context(open(self._part(asked[at]), "ab+"))
                    _begin(file, whole, header.get("off"))
                assert file
                if "len" in header:
                    if header["off"] != file.seek(0, os.SEEK_END):
                        raise Strange(f"{asked[at].name} goes on at {header['off']}")
                    if header["off"] + header["len"] > 2 * asked[at].bytes + GROWN_BYTES:
                        raise Strange(f"{asked[at].name} is much longer than it was")
                    if not self._copy(out, header["len"], file, whole):
                        return
                else:
                    self._end(at, asked[at], header, file, whole)

    def _copy(self, out: IO[bytes], size: int, file: IO[bytes], whole: Any) -> bool:
        """False when the link dropped: what came is kept."""
        data = out.read(size)
        file.write(data)
        whole.update(data)
        self.came += len(data)
        self.on_bytes(len(data))
        return len(data) == size

    def _end(self, at: int, one: Asked, header: dict[str, Any], file: IO[bytes], whole: Any) -> None:
        """The file is here, is not wanted, or cannot be had."""
        part = self._part(one)
        if "sha256" in header and (file.tell(), whole.hexdigest()) == (header["bytes"], header["sha256"]):
            file.flush()
            os.fsync(file.fileno())
            files.make_folder(one.into.parent)
            self.replace(part, one.into)
            self.got[at] = Got(header["sha256"], header["bytes"])
            return
        part.unlink(missing_ok=True)
        if "sha256" not in header:
            self.got[at] = Got(same=header.get("same", False), why=header.get("error", ""))
            return
        self.wrong[at] = self.wrong.get(at, 0) + 1
        if self.wrong[at] >= WRONG:
            self.got[at] = Got(why="it arrives as another than the node reads: it changes there, or a disk is at fault")


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _begin(file: IO[bytes], whole: Any, off: int | None) -> None:
    """Hashes what is here already; nothing of it counts when the node begins anew."""
    if off == 0:
        file.truncate(0)
    file.seek(0)
    while data := file.read(READ_BYTES):
        whole.update(data)
