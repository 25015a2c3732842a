"""A run's working folder: the code of an attempt, and beside it whatever its scripts wrote.

The two share a folder, so that a script which writes beside itself runs unchanged, but they are told apart by content:
RUN_DIR/code.json holds the mark of every file as it was put there. So an attempt takes away or replaces what is code
and still as it was put, and nothing else:

    the script did not touch it     it becomes what the new code has, or goes
    the script rewrote it           it stays, unless the new code changed that very file: then it goes to RUN_DIR/aside
    it is in the way of the code    (a file where the code has a folder, a link, …) it goes to RUN_DIR/aside
    the script deleted it           it is put back
    any other file                  stays

At first a file has the time that it has in the project. What is as the code has it is not written again; what is gets a
time later than that of the file before it, and its
.pyc files go: Python, make and ninja notice every change and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from ..oslib import fail, read_json, write_json
from . import tree

TOLD = 20
"""Names in an answer: there may be thousands."""


def lay_out(code: str, work: str, run_dir: str, attempt: int) -> dict[str, Any]:
    """Makes `work` hold the code. Answers {"kept": what the run's scripts rewrote, which is not as the code has it,
    "aside": what was moved}; may be repeated after a kill at any point. Code that is not what its name says is refused.
    """
    new = tree.read(code)
    if tree.digest(new) != os.path.basename(code):
        fail("the code in %s is not what its name says: run the command again, which sends it anew" % code)
    note = os.path.join(run_dir, "code.json")
    before = read_json(note, {})
    before = before if isinstance(before, dict) and isinstance(before.get("files"), dict) else {"files": {}}
    old: dict[str, str] = before["files"]
    room = _Room(work, run_dir, attempt, before.get("boot") != _boot())
    for name in old.keys() - new.keys():
        if room.mark(name) == old[name]:
            room.remove(name)
    kept = []
    for name, wanted in sorted(new.items()):
        seen, as_put = room.mark(name), old.get(name)
        if seen == wanted:
            continue
        rewritten = seen not in (None, as_put) or room.obstacle(name)
        if rewritten and as_put == wanted:
            kept.append(name)
            continue
        if rewritten and seen is not None:
            room.put_aside(name)
        room.place(os.path.join(code, name), name, wanted, first=attempt == 1 and not old)
    write_json(note, {"hash": os.path.basename(code), "boot": _boot(), "files": new, "kept": kept})
    return {"kept": kept[:TOLD], "aside": room.aside[:TOLD]}


class _Room:
    """The working folder; what is asked and done there never goes through a link that a script put in its way."""

    def __init__(self, work: str, run_dir: str, attempt: int, rebooted: bool) -> None:
        self.work, self.temporary, self.rebooted = work, os.path.join(run_dir, "code.tmp"), rebooted
        self.kept = os.path.join(run_dir, "aside", "attempt_%d" % attempt)
        self.aside: list[str] = []

    def path(self, name: str) -> str:
        return os.path.join(self.work, name)

    def mark(self, name: str) -> str | None:
        """Mark of what is there (its hash, a link's target), None for nothing. A file that is empty after the machine
        has lost power was not written by a script."""
        found = None if self.obstacle(name) else tree.content(self.path(name))
        if found is None or (self.rebooted and found[0] in "-x" and not found[1].strip(b"\0")):
            return None
        return tree.mark(found)

    def obstacle(self, name: str) -> str:
        """The first folder above `name` that is there and is none."""
        parts = name.split(os.sep)[:-1]
        above = [os.sep.join(parts[: n + 1]) for n in range(len(parts))]
        return next((p for p in above if os.path.lexists(self.path(p)) and not _is_folder(self.path(p))), "")

    def remove(self, name: str) -> None:
        os.unlink(self.path(name))
        self.forget_compiled(name)
        folder = os.path.dirname(name)
        with contextlib.suppress(OSError):  # it holds something of the run
            while folder:
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(self.path(folder), tree.CACHE))
                os.rmdir(self.path(folder))
                folder = os.path.dirname(folder)

    def put_aside(self, name: str) -> None:
        target = os.path.join(self.kept, name)
        while os.path.lexists(target):
            target += "~"
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        os.rename(self.path(name), target)
        self.aside.append(name)

    def place(self, source: str, name: str, wanted: str, *, first: bool) -> None:
        """Puts one file of the code there, checked as it is read. On the `first` occasion nothing can have been made of
        it yet, so it has its own time."""
        obstacle = self.obstacle(name)
        if obstacle:
            self.put_aside(obstacle)
        path, seen = self.path(name), self.mark(name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        found = tree.content(source)
        if found is None or tree.mark(found) != wanted:
            fail("%s changed while it was copied" % source)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.temporary)
        kind, data = found
        if kind == "l":
            os.symlink(data, os.fsencode(self.temporary))
        else:
            with open(self.temporary, "wb") as file:
                file.write(data)
            os.chmod(self.temporary, 0o700 if kind == "x" else 0o600)
        now = time.time()
        if first and seen is None and os.lstat(source).st_mtime > 0:
            now = min(now, os.lstat(source).st_mtime)
        with contextlib.suppress(FileNotFoundError):
            now = max(now, os.lstat(path).st_mtime + 1)
        os.utime(self.temporary, (now, now), follow_symlinks=False)
        os.replace(self.temporary, path)
        self.forget_compiled(name)

    def forget_compiled(self, name: str) -> None:
        """A .pyc that was made unchecked would be trusted whatever the source is."""
        stem, suffix = os.path.splitext(os.path.basename(name))
        cache = os.path.join(os.path.dirname(self.path(name)), tree.CACHE)
        if suffix == ".py" and _is_folder(cache):
            for entry in os.listdir(cache):
                if entry.startswith(stem + ".") and entry.endswith(".pyc"):
                    os.unlink(os.path.join(cache, entry))


def _boot() -> str:
    """Another one after each start of the machine."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
