"""The user's project and our own package as content-addressed archives: unchanged code is not sent again."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nexa_dist.errors import NexaError
from nexa_dist.run import bundle, dotenv
from nexa_dist.run.files import write_bytes
from nexa_dist.run.runner import Runner

LIMIT_BYTES = 200 * 1024 * 1024
SKIPPED = {".git", ".venv", ".nexa", "runs", "__pycache__", "node_modules", ".mypy_cache", ".pytest_cache"}


class Code(Protocol):
    """Files under one hash, which can be sent."""

    @property
    def hash(self) -> str: ...
    def pack(self) -> bytes: ...


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


def keep(folder: Path, code: Code) -> None:
    """Stores the packed files, so that a later attempt runs the same code whatever was edited meanwhile."""
    kept = Kept(folder / f"{code.hash}.tar.gz")
    if not kept.path.exists():
        write_bytes(kept.path, code.pack())


@dataclass(frozen=True)
class Archive:
    """A folder's files. `hash` covers names, modes and content; `pack` makes the tar.gz when it is needed."""

    root: Path
    names: tuple[str, ...]
    hash: str

    def pack(self) -> bytes:
        """Same files, same bytes: times and owners are left out."""
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in self.names:
                tar.add(self.root / name, arcname=name, recursive=False, filter=_plain)
        return buffer.getvalue()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info


def project(runner: Runner, root: Path) -> Archive:
    """Tracked and untracked-not-ignored files below `root`; without git, all but the usual caches."""
    listed = runner.run(
        ("git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"), timeout_s=60
    )
    if listed.code == 0:
        names = sorted({os.fsdecode(n) for n in listed.out.split(b"\0") if n})
    else:
        names = _walk(root)
    return build(root, [n for n in names if not set(Path(n).parts) & {".nexa", "runs"} and not _secret(n)])


def _secret(name: str) -> bool:
    """`.env`, `.env.local` and the like are for this machine alone, also where git does not ignore them."""
    file = Path(name).name
    return file == dotenv.NAME or (file.startswith(f"{dotenv.NAME}.") and file != f"{dotenv.NAME}.example")


PARENT = Path(__file__).parent.parent.parent
SYNC = (bundle.root() / "scripts" / "run_sync.sh").relative_to(PARENT).as_posix()
"""The script that talks to the bucket, as it lies in the package."""


def package() -> Archive:
    """The nexa_dist package itself: what `python -m nexa_dist.train.launcher` needs on the node."""
    names = [str(p.relative_to(PARENT)) for p in (PARENT / "nexa_dist").rglob("*.py") if "_bundle" not in p.parts]
    return build(PARENT, sorted([*names, SYNC]))


def build(root: Path, names: list[str]) -> Archive:
    """Hashes the files. Raises NexaError when they are too many bytes to send."""
    digest, total = hashlib.sha256(), 0
    kept: list[str] = []
    sizes: list[tuple[int, str]] = []
    for name in names:
        path = root / name
        try:
            info = path.lstat()
            if stat.S_ISLNK(info.st_mode):
                content = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(info.st_mode):
                sizes.append((info.st_size, name))
                total += info.st_size
                if total > LIMIT_BYTES:
                    break
                content = path.read_bytes()
            else:
                continue
        except FileNotFoundError:  # tracked by git, deleted in the work tree
            continue
        kept.append(name)
        head = f"{name}\0{stat.S_IMODE(info.st_mode) & 0o111:o}\0{len(content)}\0"
        digest.update(os.fsencode(head))
        digest.update(content)
    if total > LIMIT_BYTES:
        largest = ", ".join(f"{name} ({size >> 20} MiB)" for size, name in sorted(sizes)[:-4:-1])
        raise NexaError(
            f"the project at {root} is over {LIMIT_BYTES >> 20} MiB; largest so far: {largest}",
            hint="ignore data and checkpoints in .gitignore: only code is sent to the nodes",
        )
    return Archive(root, tuple(kept), digest.hexdigest()[:16])


def _walk(root: Path) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED)
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files]
    return sorted(found)
