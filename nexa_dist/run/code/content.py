"""Content of a file or folder of data: names, bytes and SHA-256. Gigabytes are read once: what has the size and times
of the last look keeps its hash, in `.nexa/data/`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import files
from nexa_dist.run.code.listing import shown

CHUNK = 1 << 20
YOUNG_NS = 2_000_000_000
"""A file that was changed so shortly before it was read may change again without another time."""
MOST_FILES = 1_000_000
PROGRESS_S = 5.0


@dataclass(frozen=True)
class Content:
    """A file, or all below a folder. `rows` are name, bytes and SHA-256; the name is the way from `root`."""

    root: Path
    rows: tuple[tuple[str, int, str], ...] = field(repr=False)
    left_out: tuple[str, ...] = ()
    """Names that are no file, or lead nowhere, with the reason."""

    @property
    def id(self) -> str:
        """Name of the data, as node programs make it (remote/data_store.py)."""
        whole = hashlib.sha256()
        for row in sorted(self.rows):
            whole.update(json.dumps(row).encode() + b"\n")
        return whole.hexdigest()

    @property
    def size(self) -> int:
        return sum(size for _, size, _ in self.rows)

    @property
    def single(self) -> str:
        """The name of the file that it is; empty for a folder."""
        return "" if self.root.is_dir() else self.root.name

    def chunks(self, numbers: list[int], at: int) -> Iterator[bytes]:
        """The bytes of these files, one behind the other; of the first only what lies behind `at`. Raises NexaError
        when one has become shorter."""
        for number in numbers:
            name, size, _ = self.rows[number]
            path = self.root if self.single else self.root / name
            try:
                with open(path, "rb") as file:
                    file.seek(at)
                    left = size - at
                    while left > 0:
                        data = file.read(min(CHUNK, left))
                        if not data:
                            raise changed(path)
                        left -= len(data)
                        yield data
            except OSError as error:
                raise NexaError(f"cannot read {shown(path)}: {error.strerror}") from error
            at = 0


def changed(path: Path) -> NexaError:
    return NexaError(f"{shown(path)} changed while it was read", hint="run the command again when nobody writes there")


def found(root: Path) -> tuple[dict[str, os.stat_result], list[str]]:
    """Every file below `root`, or `root` itself, by name, and what is left out. Links are followed. Raises UsageError
    when there is none."""
    names: dict[str, os.stat_result] = {}
    left_out: list[str] = []

    def look(folder: str, prefix: str, above: tuple[str, ...]) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                try:
                    info = entry.stat()
                except OSError as error:
                    left_out.append(f"{shown(name)}: {error.strerror}")
                    continue
                if stat.S_ISDIR(info.st_mode):
                    real = os.path.realpath(entry.path)
                    if real in above:
                        left_out.append(f"{shown(name)}: a link to a folder that it lies in")
                    else:
                        look(entry.path, name + "/", (*above, real))
                elif stat.S_ISREG(info.st_mode):
                    names[name] = info
                else:
                    left_out.append(f"{shown(name)}: neither a file nor a folder")
                if len(names) > MOST_FILES:
                    raise UsageError(f"{root} holds more than {MOST_FILES} files", hint="pack them into fewer")

    try:
        if root.is_dir():
            look(str(root), "", (os.path.realpath(root),))
        elif root.is_file():
            names[root.name] = root.stat()
        else:
            raise UsageError(f"{root} does not exist", hint="a path of data: is relative to the workspace")
    except OSError as error:
        raise UsageError(f"cannot read {shown(error.filename or root)}: {error.strerror}") from error
    if not names:
        raise UsageError(f"{root} holds no file")
    return names, left_out


def content(root: Path, cache: Path, say: Callable[[str], object]) -> Content:
    """Read the content that is there now. `cache` is the folder of the hashes. Raises NexaError when a file changes
    meanwhile."""
    names, left_out = found(root)
    kept = cache / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"
    known = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # none yet, or torn: all is read again
        known = json.loads(kept.read_bytes())  # not by read_json, which changes names that are no text
    known = known if isinstance(known, dict) else {}
    rows: dict[str, str] = {name: known[name][3] for name, info in names.items() if _same(known.get(name), info)}
    new = [name for name in names if name not in rows]
    total, done, last = sum(names[name].st_size for name in new), 0, time.monotonic()
    began = time.time_ns()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, sha256 in zip(new, pool.map(lambda name: _hash(root, name, names[name]), new), strict=True):
            rows[name], done = sha256, done + names[name].st_size
            if time.monotonic() - last > PROGRESS_S:
                last = time.monotonic()
                say(f"{shown(root.name)}: read {human(done)} of {human(total)}")
    if new:
        old = {name: [*_marks(info), rows[name]] for name, info in names.items() if info.st_ctime_ns < began - YOUNG_NS}
        files.write_json(kept, old)
    made = ((name, info.st_size, rows[name]) for name, info in sorted(names.items()))
    return Content(root, tuple(made), tuple(left_out))


def _marks(info: os.stat_result) -> list[int]:
    """Marks of a file's version: one that is copied over with its old time has another time of change."""
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def _same(row: object, info: os.stat_result) -> bool:
    return isinstance(row, list) and len(row) == 4 and row[:3] == _marks(info) and isinstance(row[3], str)


def _hash(root: Path, name: str, info: os.stat_result) -> str:
    path = root / name if root.is_dir() else root
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot read {shown(path)}: {error.strerror}") from error
    if _marks(after) != _marks(info):
        raise changed(path)
    return sha256


def human(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
