"""Hash of a folder of code: the controller names code by this hash, and a node checks its copy by it.

run/code/archive.py makes the same name from the bytes that it sends; a test holds the two together. `__pycache__` is
not counted and never sent: Python makes it, also in the package that the ranks import.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat

CACHE = "__pycache__"
DIGITS = 16


def content(path: str) -> tuple[str, bytes] | None:
    """Kind ("-" a file, "x" one that may be run, "l" a link, "d" a folder, "?" what else there is) and bytes; None when
    nothing is there."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return "l", os.fsencode(os.readlink(path))
        if not stat.S_ISREG(mode):
            return "d" if stat.S_ISDIR(mode) else "?", b""
        with open(path, "rb") as file:
            return "x" if mode & 0o111 else "-", file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def mark(found: tuple[str, bytes]) -> str:
    """Names kind and bytes."""
    return "%s %s" % (found[0], hashlib.sha256(found[1]).hexdigest())


def read(folder: str) -> dict[str, str]:
    """The mark of every file and link below the folder, by its name there. Links are not followed."""
    found = {}
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != CACHE]
        for name in files + [name for name in folders if os.path.islink(os.path.join(base, name))]:
            path = os.path.join(base, name)
            seen = content(path)
            if seen is not None:
                found[os.path.relpath(path, folder)] = mark(seen)
    return found


def digest(marks: dict[str, str]) -> str:
    """The name of code that holds this."""
    whole = hashlib.sha256()
    for name in sorted(marks, key=os.fsencode):
        whole.update(b"%s\0%s\n" % (os.fsencode(name), marks[name].encode()))
    return whole.hexdigest()[:DIGITS]


def whole(folder: str) -> bool:
    """Check that the folder holds what its name says."""
    if not os.path.isdir(folder) or digest(read(folder)) != os.path.basename(folder):
        return False
    touch(folder)
    return True


def touch(folder: str) -> None:
    """Marks a folder of code as in use: what is not used for long is taken away."""
    with contextlib.suppress(OSError):
        os.utime(folder)
