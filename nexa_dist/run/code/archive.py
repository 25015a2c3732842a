"""The user's project and our own package as content-addressed archives: unchanged code is not sent again."""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.run import bundle
from nexa_dist.run.code.listing import NAME_IT, LeftOut, Listing, listed, shown
from nexa_dist.run.files import write_bytes
from nexa_dist.run.runner import Runner

LIMIT_BYTES = 1 << 30
"""Limit in bytes: all of a project is read into memory, and each node gets it; more than that is data."""
QUICK_BYTES = 32 << 20
"""Bytes above which a project is packed for time, not for size: most of it is no text."""
DIGITS = 16
AGAIN_S = 0.2
"""Seconds between the two tries to read a file that somebody writes."""


@dataclass(frozen=True)
class Kept:
    """An archive as it was packed for an earlier attempt of a run."""

    path: Path

    @property
    def hash(self) -> str:
        return self.path.name.removesuffix(".tar.gz")

    def pack(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise NexaError(
                f"{self.path} is gone: the code that this run was started with",
                hint="nexa run --resume takes the code as it is now",
            ) from None


def look(code: Code, name: str) -> tuple[tuple[str, ...], bytes | None]:
    """Names of all files in code, and the bytes of one; None where it is not there. Raises NexaError as `opened`."""
    whole = code if isinstance(code, Archive) else opened(code)
    return whole.names, next((file.content for file in whole.files if file.name == name), None)


def keep(folder: Path, code: Code) -> None:
    """Stores the packed files, so that a later attempt runs the same code whatever was edited meanwhile."""
    path = folder / f"{code.hash}.tar.gz"
    if code != Kept(path):
        write_bytes(path, code.pack(), 0o600)


def opened(kept: Kept) -> Archive:
    """Files of an archive as it was packed. Raises NexaError when they are not those that its name says."""
    files = []
    try:
        with tarfile.open(fileobj=io.BytesIO(kept.pack())) as tar:
            for info in tar:
                kind = "l" if info.issym() else "x" if info.mode & 0o100 else "-"
                file = tar.extractfile(info) if info.isfile() else None
                content = file.read() if file else os.fsencode(info.linkname)
                files.append(File(info.name, kind, content, int(info.mtime)))
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise NexaError(f"{kept.path} is damaged: {error}") from error
    if digest(files) != kept.hash:
        raise NexaError(f"{kept.path} is damaged: it is not what its name says")
    return Archive(tuple(files), kept.hash)


@dataclass(frozen=True)
class File:
    """One file or link as it was read: its name on the nodes, its kind as in node/code/tree.py, its bytes."""

    name: str
    kind: str
    content: bytes
    unix: int = field(default=0, compare=False)
    """Time of the file's last change; no part of the hash."""

    @property
    def mark(self) -> str:
        return f"{self.kind} {hashlib.sha256(self.content).hexdigest()}"


@dataclass(frozen=True)
class Archive:
    """A folder's files, read once. `hash` covers names, kinds and these very bytes; `pack` makes the tar.gz."""

    files: tuple[File, ...] = field(repr=False)
    hash: str
    left_out: tuple[LeftOut, ...] = ()
    followed: tuple[tuple[str, Path], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)

    @property
    def size(self) -> int:
        return sum(len(file.content) for file in self.files)

    def pack(self) -> bytes:
        """Same files, same bytes: owners are left out."""
        return _packed(self.files)

    def pack_part(self, lacking: Sequence[int]) -> bytes:
        """Pack a part for a node that has the other files under another hash: a line with all marks by name, then a
        tar.gz of those that it lacks, by their place in `names`."""
        marks = json.dumps({file.name: file.mark for file in self.files})
        return marks.encode() + b"\n" + _packed([self.files[n] for n in lacking])


Code = Archive | Kept
"""Files under one hash, which can be sent."""


def _packed(files: Iterable[File]) -> bytes:
    buffer, files = io.BytesIO(), list(files)
    level = 6 if sum(len(file.content) for file in files) < QUICK_BYTES else 1
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=level) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.mtime = file.unix
            info.mode = 0o600 if file.kind == "-" else 0o700
            if file.kind == "l":
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(file.content)
                tar.addfile(info)
            else:
                info.size = len(file.content)
                tar.addfile(info, io.BytesIO(file.content))
    return buffer.getvalue()


def digest(files: Iterable[File]) -> str:
    """The name of code, as node/code/tree.py makes it anew from what has arrived."""
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda file: os.fsencode(file.name)):
        whole.update(os.fsencode(file.name) + b"\0" + file.mark.encode() + b"\n")
    return whole.hexdigest()[:DIGITS]


def project(runner: Runner, root: Path, also: Sequence[str] = ()) -> Archive:
    """Archive of the project at `root`, and what is not sent of it (run/code/listing.py)."""
    return _read(root, listed(runner, root, also))


PARENT = Path(__file__).parents[3]
SYNC = (bundle.root() / "scripts" / "run_sync.sh").relative_to(PARENT).as_posix()
"""The script that talks to the bucket, as it lies in the package."""


def package() -> Archive:
    """The nexa_dist package itself: what `python -m nexa_dist.train.launcher` needs on the node."""
    ours = PARENT / "nexa_dist"
    found = [
        *ours.rglob("*.py"),
        *(ours / "config").rglob("*.json"),
    ]  # a config is read there with what its checks read
    names = [str(p.relative_to(PARENT)) for p in found if "_bundle" not in p.parts]
    return build(PARENT, sorted([*names, SYNC]))


def build(root: Path, names: Iterable[str]) -> Archive:
    """Archive of these files below `root`."""
    return _read(root, Listing({name: (root, root / name) for name in names}))


def _read(root: Path, listing: Listing) -> Archive:
    """Reads each file once. Raises NexaError when they are too many bytes, or one cannot be read, or changes."""
    sizes: dict[str, int] = {}
    behind_a_link = functools.cache(_behind_a_link)
    for name, (inside, path) in sorted(listing.files.items()):
        try:
            info = path.lstat()
        except (FileNotFoundError, NotADirectoryError):  # tracked by git, deleted in the work tree
            continue
        if behind_a_link(path.parent, inside):  # to git it is deleted, but listed: a folder became a link
            continue
        if stat.S_ISLNK(info.st_mode):
            if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(inside)):
                listing.leave(name, f"a link out of the project, to {os.readlink(path)}", NAME_IT)
                continue
        elif not stat.S_ISREG(info.st_mode):
            listing.leave(name, "neither a file nor a link")
            continue
        sizes[name] = info.st_size
    if sum(sizes.values()) > LIMIT_BYTES:
        largest = ", ".join(
            f"{shown(name)} ({sizes[name] >> 20} MiB)" for name in sorted(sizes, key=sizes.__getitem__)[:-4:-1]
        )
        raise NexaError(
            f"the project at {root} is over {LIMIT_BYTES >> 20} MiB; largest: {largest}",
            hint="leave data and checkpoints out by .gitignore or .nexaignore: data: of train.yaml brings these",
        )
    files = tuple(_file(name, *listing.files[name]) for name in sizes)
    return Archive(files, digest(files), tuple(listing.left_out.values()), tuple(listing.followed.items()))


def _behind_a_link(folder: Path, inside: Path) -> bool:
    return os.path.realpath(folder) != os.path.normpath(os.path.realpath(inside) / folder.relative_to(inside))


def _file(name: str, inside: Path, path: Path) -> File:
    """Tried twice: an editor may be at work."""
    for again in (False, True):
        if again:
            time.sleep(AGAIN_S)
        with contextlib.suppress(OSError):
            if (found := _whole(name, inside, path)) is not None:
                return found
    raise NexaError(
        f"{shown(path)} changed or disappeared while it was read, twice",
        hint="run the command again when it is written, or name it in .gitignore or .nexaignore",
    )


def _whole(name: str, inside: Path, path: Path) -> File | None:
    """The file or link, unless somebody writes to it just now."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            before = os.fstat(file.fileno())
            content = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            return File(name, "l", os.fsencode(_target(inside, path)))
        raise NexaError(
            f"cannot read {shown(path)}: {error.strerror}", hint="name it in .nexaignore if the nodes do without it"
        ) from error
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not same or len(content) != after.st_size or not stat.S_ISREG(after.st_mode):
        return None
    return File(name, "x" if after.st_mode & 0o111 else "-", content, max(0, int(after.st_mtime)))


def _target(inside: Path, path: Path) -> str:
    """Target of a link, in the words that hold on the nodes too and that tar takes: relative, normal, never out of the
    project and in again."""
    real, target = os.path.realpath(path), os.path.normpath(os.readlink(path))
    name = os.path.normpath(os.path.join(os.path.relpath(path.parent, inside), target))
    if os.path.isabs(target) or name.startswith("..") or os.path.realpath(path.parent / target) != real:
        return os.path.relpath(real, os.path.realpath(path.parent))
    return target
