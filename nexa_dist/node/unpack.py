"""The command `unpack`: brings code to a node; and `whole`: whether it is there, as its name says."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tarfile
import time
from typing import Any

from . import tree
from .base import fail, unfinished

STALE_S = 86400.0
"""No unpacking takes so long: what is older was left by one that was killed."""


def unpack(target: str, name: str = "") -> dict[str, Any]:
    """Makes `target` from a tar on stdin: a temporary sibling first, then one rename.

    With `name`, the hash that code is known by, what came is held against it; so is a folder that is there already, and
    is made anew when it is something else. Without one, what is there stays.
    """
    above = os.path.dirname(target)
    os.makedirs(above, mode=0o700, exist_ok=True)
    _tidy(above)
    # Not by our pid: on a disk that machines share, another machine's process may have the same one.
    temporary = unfinished(target, int.from_bytes(os.urandom(6), "big"))
    os.mkdir(temporary, mode=0o700)  # a project may have no file
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(temporary, filter="data")
            else:
                archive.extractall(temporary, members=_inside(archive, bool(name)))  # noqa: S202  (older Pythons)
        if name and tree.digest(tree.read(temporary)) != name:
            fail("what arrived is not %s, or was damaged on its way: run the command again" % name)
        _put(temporary, target, name)
    except (tarfile.TarError, EOFError) as error:
        fail("what arrived cannot be unpacked: %s" % error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"path": target}


def whole(target: str) -> dict[str, Any]:
    return {"whole": tree.whole(target)}


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
