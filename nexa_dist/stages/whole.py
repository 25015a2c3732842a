"""Files that are whole or absent, and the hash of a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from nexa_dist.errors import NexaError

MANIFEST = "manifest.json"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A scratch sibling to write to, a file or a folder; at the end it gets its name, if nothing was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    remove(scratch)
    yield scratch
    if scratch.is_file():
        fd = os.open(scratch, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    scratch.replace(path)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NexaError(f"cannot read {path}: {error.strerror}") from error


def hashes(root: Path) -> dict[str, dict[str, int | str]]:
    """bytes and sha256 of each file below a folder, or of a file itself, by name. Names that begin with '.' (scratch)
    and the manifest at the top are left out. Raises NexaError."""
    if root.is_file():
        return {root.name: {"bytes": root.stat().st_size, "sha256": file_sha256(root)}}
    if not root.is_dir():
        raise NexaError(f"{root} is not there")
    found: dict[str, dict[str, int | str]] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder).resolve()
        for name in folders:
            if os.path.islink(link := os.path.join(folder, name)) and here.is_relative_to(Path(link).resolve()):
                raise NexaError(f"{link} leads to a folder that it lies in", hint="take that link away")
        for name in sorted(names):
            path = Path(folder, name)
            inside = path.relative_to(root).as_posix()
            if not name.startswith(".") and inside != MANIFEST:
                if not path.is_file():  # a pipe would be waited for
                    raise NexaError(f"{path} is no plain file", hint="take it out of the folder")
                found[inside] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return dict(sorted(found.items()))


def tree_sha256(files: Mapping[str, Mapping[str, int | str]]) -> str:
    """SHA-256 of what `sha256sum` prints of all files, by name."""
    lines = (f"{files[name]['sha256']}  {name}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
