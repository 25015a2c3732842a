"""Taking of one run's setup by another run on the same node: the files that setup made, as long as they are as it left
them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from typing import Any

from ..oslib import read_json
from . import tree

NOTE = "nexa.json"
"""Note in a layer's folder of what the layer is. No part of its contents."""
TEXT_BYTES = 1 << 20
"""Size in bytes above which a file is not searched for the path of its run's folder."""


def noted(path: str) -> dict[str, Any]:
    """A note of what was made; one without a key where there is none. Whatever ran there may have written to it."""
    found = read_json(path)
    good = isinstance(found, dict) and isinstance(found.get("files"), dict)
    return {"key": "", **found} if good else {"key": "", "files": {}}


def seen(folder: str) -> dict[str, Any]:
    """Look at all that is below a folder, by name, with a mark that changes when it is written."""
    found = {}
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != tree.CACHE]
        for name in folders + files:
            path = os.path.join(base, name)
            found[os.path.relpath(path, folder)] = mark(path)
    return found


def mark(path: str) -> Any:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    is_folder = os.path.isdir(path) and not os.path.islink(path)
    return "folder" if is_folder else [info.st_size, info.st_mtime_ns, info.st_mode]


def digest(layer: str) -> str:
    """Names a layer as it is, its note aside."""
    found = {name: left for name, left in seen(layer).items() if name != NOTE}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def made(before: dict[str, Any], work: str) -> dict[str, Any]:
    return {name: left for name, left in seen(work).items() if before.get(name) != left}


def as_left(run: str, files: dict[str, Any]) -> bool:
    return all(mark(os.path.join(run, "work", name)) == left for name, left in files.items())


def bound(run: str, files: dict[str, Any]) -> bool:
    """Tell whether what was made in a run's working folder is of that run alone: a link into its folder, where its data
    is too, or a text that names it."""
    for name in files:
        path, said = os.path.join(run, "work", name), b""
        if os.path.islink(path):
            said = os.fsencode(os.readlink(path))
        elif os.path.isfile(path) and os.path.getsize(path) <= TEXT_BYTES:
            with open(path, "rb") as file:
                said = file.read()
        if os.fsencode(run) in said and b"\0" not in said:
            return True
    return False


def copy(source: str, target: str, files: dict[str, Any]) -> None:
    for name, left in sorted(files.items()):
        path = os.path.join(target, name)
        if left == "folder":
            os.makedirs(path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        shutil.copy2(os.path.join(source, name), path, follow_symlinks=False)


def move(source: str, target: str, old: str, new: str) -> None:
    """A layer into another run's folder. What names the old folder (scripts, paths of the project) gets the new one;
    the rest is linked, as uv and conda do it: whoever changes a package puts a new file there."""
    for base, folders, files in os.walk(source):
        there = os.path.join(target, os.path.relpath(base, source))
        os.makedirs(there, exist_ok=True)
        linked = [name for name in folders if os.path.islink(os.path.join(base, name))]
        folders[:] = [name for name in folders if name != tree.CACHE]
        for name in files + linked:
            path, to = os.path.join(base, name), os.path.join(there, name)
            if os.path.islink(path):
                os.symlink(os.readlink(path).replace(old, new), to)
                continue
            data = b""
            if os.path.getsize(path) <= TEXT_BYTES:
                with open(path, "rb") as file:
                    data = file.read()
            if os.fsencode(old) in data and b"\0" not in data:
                with open(to, "wb") as file:
                    file.write(data.replace(os.fsencode(old), os.fsencode(new)))
                shutil.copymode(path, to)
                continue
            try:
                os.link(path, to)
            except OSError:
                shutil.copy2(path, to)
