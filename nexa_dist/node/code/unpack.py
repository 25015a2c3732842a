"""The command `unpack`: brings code to a node; and `whole`: whether it is there, as its name says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tarfile
import time
from typing import Any

from ..oslib import fail, unfinished
from . import tree

CODE = re.compile(r"[0-9a-f]{%d}" % tree.DIGITS)
KEPT, UNUSED_S = 8, 86400.0
"""Folders of code that stay whatever their age; beyond them go those that nobody has used for so long."""
ASKED = KEPT
"""Folders of code, the newest, that are looked through for files which need not be sent again. Users who share a disk
put theirs between ours."""
STALE_S = 86400.0
"""Age of a temporary folder that no unpacking reaches: one that was killed left it."""


def unpack(target: str, name: str = "", part: str = "") -> dict[str, Any]:
    """Makes `target` from a tar on stdin: a temporary sibling first, then one rename.

    With `name`, the hash that code is known by, what came is held against it; so is a folder that is there already, and
    is made anew when it is something else. Without one, what is there stays. With `part` a line comes first, the marks
    of all files by name; what the tar lacks of them is taken from other code here.
    """
    above = os.path.dirname(target)
    os.makedirs(above, mode=0o700, exist_ok=True)
    _tidy(above)
    # Not by our pid: on a disk that machines share, another machine's process may have the same one.
    temporary = unfinished(target, int.from_bytes(os.urandom(6), "big"))
    os.mkdir(temporary, mode=0o700)  # a project may have no file
    try:
        if part:
            _take(above, temporary, json.loads(sys.stdin.buffer.readline()))
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
            more: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # refuses more
            archive.extractall(temporary, members=_inside(archive, bool(name)), **more)  # noqa: S202
        if name and tree.digest(tree.read(temporary)) != name:
            fail("what arrived is not %s, or was damaged on its way: run the command again" % name)
        _put(temporary, target, name)
        if name:
            prune(above, name)
    except (tarfile.TarError, EOFError) as error:
        fail("what arrived cannot be unpacked: %s" % error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"path": target}


def whole(target: str) -> dict[str, Any]:
    return {"whole": tree.whole(target)}


def lacks(target: str, message: dict[str, Any]) -> dict[str, Any]:
    """`message` is {"files": marks by name}. Answers the places of those that no other code here has."""
    found = _known(os.path.dirname(target), message["files"])
    return {"lacks": [n for n, name in enumerate(message["files"]) if name not in found]}


def _codes(above: str) -> list[str]:
    """The folders of code there, the newest first."""
    with contextlib.suppress(FileNotFoundError):
        names = [name for name in os.listdir(above) if CODE.fullmatch(name)]
        return sorted(names, key=lambda name: _used(os.path.join(above, name)), reverse=True)
    return []


def _used(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _known(above: str, marks: dict[str, str]) -> dict[str, str]:
    """Finds, by name, a file of this mark that lies under the same name in other code."""
    found: dict[str, str] = {}
    for code in _codes(above)[:ASKED]:
        for name in marks.keys() - found.keys():
            path = os.path.join(above, code, name)
            seen = None if os.path.isabs(name) or ".." in name.split("/") else tree.content(path)
            if seen is not None and tree.mark(seen) == marks[name]:
                found[name] = path
    return found


def _take(above: str, temporary: str, marks: dict[str, str]) -> None:
    """Files first: none is written through a link. What was changed meanwhile is noticed by the hash of the whole."""
    for name, source in sorted(_known(above, marks).items(), key=lambda item: marks[item[0]][0] == "l"):
        path = os.path.join(temporary, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        shutil.copy2(source, path, follow_symlinks=False)


def prune(above: str, name: str) -> None:
    """Takes away code that nobody used for a day, but for the newest. The agent of a living run touches its own, and
    no process here names it."""
    old = [code for code in _codes(above)[KEPT:] if _used(os.path.join(above, code)) < time.time() - UNUSED_S]
    named = _named(old) if old else set()
    for code in old:
        if code != name and code not in named:
            gone = unfinished(os.path.join(above, code), int.from_bytes(os.urandom(6), "big"))
            with contextlib.suppress(OSError):
                os.rename(os.path.join(above, code), gone)
                shutil.rmtree(gone, ignore_errors=True)


def _named(codes: list[str]) -> set[str]:
    """Folders that a process of this machine has in its command line or environment."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for part in ("cmdline", "environ"):
            with contextlib.suppress(OSError), open("/proc/%s/%s" % (pid, part), "rb") as file:
                text = file.read()
                found |= {code for code in codes if code.encode() in text}
    return found


def _put(temporary: str, target: str, name: str) -> None:
    try:
        os.rename(temporary, target)
    except OSError:  # something is there: another run made it meanwhile, or it is not what its name says
        if name and not tree.whole(target):
            wrong = unfinished(target, int.from_bytes(os.urandom(6), "big"))
            os.rename(target, wrong)
            os.rename(temporary, target)
            shutil.rmtree(wrong, ignore_errors=True)


def _inside(archive: tarfile.TarFile, links: bool) -> Any:
    """Members that stay below the folder. Links only in code, whose links the controller has followed to their end."""
    for member in archive:
        plain = member.isreg() or member.isdir() or (links and member.issym())
        if not plain or os.path.isabs(member.name) or ".." in member.name.split("/"):
            raise tarfile.TarError("%r does not stay in its folder, or is no plain file" % member.name)
        member.mode &= 0o755
        yield member


def _tidy(above: str) -> None:
    for name in os.listdir(above):
        path = os.path.join(above, name)
        with contextlib.suppress(OSError):
            if re.search(r"\.[0-9]+\.tmp\Z", name) and os.lstat(path).st_mtime < time.time() - STALE_S:
                shutil.rmtree(path, ignore_errors=True)
