"""Footprint of nexa on a machine that belongs to somebody: looked at before, written down, taken away again.

Run over ssh before the agent is there: this file, then a message, on standard input of a Python 3.9+ of the machine.

    look      what is there, what is missing, what would be made; changes nothing
    claim     makes the missing folders and writes `<shared>/.nexa-clusters/<id>.json`
    tidy      removes the temporary folder of a bootstrap, as the others do before all else
    release   takes away what was added since, and tells what stays

Only names that nexa gives are ever removed, and of these only those that were not there when the machine was looked at
first. A folder is removed when it was made for nexa and is empty. What several clusters share goes with the last one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from typing import Any

CLAIMS = ".nexa-clusters"
NAMES = {
    "": r"uv-cache|uv-[0-9][0-9.]*(\.lock)?",
    "envs": r"[0-9a-f]{16}(\.(lock|inputs|taken|gone))?",
    "agent": r"[0-9a-f]{16}",
    "code": r"[0-9a-f]{8,64}(\.[0-9]+\.tmp)?",
    "data": r"(\.tmp-)?[0-9a-f]{8,64}(\.(lock|part|taken|[0-9]+\.gone))?",
}
"""Names in `shared`, by folder, of the things that nexa puts there."""
RUN = r"[a-z]+_[0-9]{8}_[0-9]{6}_.+"
ROOM_GB = {"cpu": 2, "cuda": 8}
"""GB that an environment and uv's cache of it take, by the build of torch in it."""
FILES = 60000
TOOLS = {"rsync": "rsync", "tar": "tar", "setsid": "util-linux"}
"""Programs, and the Debian packages that bring them."""


def look(message: dict[str, Any]) -> dict[str, Any]:
    """`message`: {"folders": scratch, shared, durable as in the layout, "find_links": a folder or ""}."""
    home = os.path.expanduser("~")
    folders = absolute(message["folders"], home)
    faults: list[str] = []
    missing: list[str] = []
    inside = [os.path.join(folders["shared"], kind) for kind in NAMES if kind]
    missing += [path for path in inside if not os.path.lexists(path)]
    for folder in folders.values():
        lacking, base = chain(folder)
        missing += [path for path in lacking if path not in missing]
        if not os.path.isdir(base):
            faults.append("%s is not a folder" % base)
        elif not os.access(base, os.W_OK | os.X_OK):
            faults.append("%s cannot write to %s" % (user(), base))
        elif folder == folders["shared"]:
            faults += unfit(folder, base)
    lacks = [package for name, package in TOOLS.items() if not shutil.which(name)]
    if not shutil.which("uv") and not can_make_environments():
        lacks.append("python3-venv")
    status = os.stat(home)
    return {
        "home": home,
        "user": user(),
        "python": sys.executable,
        "version": list(sys.version_info[:3]),
        "missing": sorted(missing, key=len),
        "before": before(folders),
        "lacks": lacks,
        "faults": faults,
        "account": "%s %d %d" % (boot_id(), status.st_dev, status.st_ino),
        "has_wheels": os.path.isdir(message.get("find_links") or "/nonexistent"),
    }


def unfit(shared: str, base: str) -> list[str]:
    """Why the environment cannot lie in `shared`, of which `base` is there. One that is there already needs no room."""
    told = os.statvfs(base)
    faults = []
    if told.f_flag & os.ST_NOEXEC:
        faults.append("%s is mounted noexec, and the environment's Python runs from there: name another shared:" % base)
    need = ROOM_GB["cuda" if os.path.exists("/proc/driver/nvidia/version") else "cpu"]
    free = told.f_bavail * told.f_frsize / 1e9
    there = any(os.path.isdir(os.path.join(shared, "envs", name)) for name in matching(shared + "/envs", NAMES["envs"]))
    if not there and free < need:
        room = "%s has %.1f GB free, and the environment needs %d: make room, or name another shared:"
        faults.append(room % (base, free, need))
    elif not there and told.f_files and told.f_favail < FILES:
        faults.append("%s has inodes for %d files, and the environment has %d" % (base, told.f_favail, FILES))
    return faults


def tidy(message: dict[str, Any]) -> dict[str, Any]:
    """Removes a temporary folder that is this user's."""
    path = message.get("tidy") or ""
    mine = path and os.path.isdir(path) and not os.path.islink(path) and os.stat(path).st_uid == os.getuid()
    if mine:
        shutil.rmtree(path)
    return {"changed": bool(mine)}


def claim(message: dict[str, Any]) -> dict[str, Any]:
    """`message`: {"id", "folders": absolute ones, "missing", "before": as first looked at}. What is claimed stays as
    it was claimed."""
    folders = message["folders"]
    for folder in folders.values():
        os.makedirs(folder, mode=0o700, exist_ok=True)
    with locked(folders["shared"]) as claims:
        path = os.path.join(claims, message["id"] + ".json")
        made = not os.path.exists(path)
        if made:
            kept = {key: message[key] for key in ("id", "folders", "missing", "before")}
            write(path, {**kept, "host": socket.gethostname()})
    return {"changed": made}


def release(message: dict[str, Any]) -> dict[str, Any]:
    """`message`: as of `claim`, which stands in for a claim that was never written, and "names": what the cluster's
    runs and bootstraps are known to have added, {"runs", "envs", "agent", "code", "data"}."""
    shared = message["folders"]["shared"]
    here = {**message, "host": socket.gethostname()}
    if not os.path.isdir(shared):
        answer = taken_away(here, [], message["names"])
        return {**answer, "removed": answer["removed"] + prune(here, []), "stays": stays(here, [])}
    with locked(shared) as claims:
        path = os.path.join(claims, message["id"] + ".json")
        mine = read(path) or here
        heirs = [found for found in (read(other) for other in listed(claims, path)) if found]
        answer = taken_away(mine, heirs, message["names"])
        if answer["processes"]:
            return answer
        for heir in heirs:
            hand_over(mine, heir)
            write(os.path.join(claims, heir["id"] + ".json"), heir)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        if not heirs:
            shutil.rmtree(claims)
    return {**answer, "removed": answer["removed"] + prune(mine, heirs), "stays": stays(mine, heirs)}


def taken_away(mine: dict[str, Any], heirs: list[dict[str, Any]], names: dict[str, list[str]]) -> dict[str, Any]:
    """Removes the folders of our runs, and what nobody else uses; nothing while a process is still at work there."""
    scratch = mine["folders"]["scratch"]
    runs = [name for name in matching(scratch, RUN) if name in names["runs"]]
    gone = [os.path.join(scratch, name) for name in runs if name not in mine["before"].get(scratch, [])]
    if not heirs:
        gone += added(mine, names)
    left = users_of(gone)
    return {"removed": [] if left else [remove(path) for path in gone], "stays": [], "processes": left}


def absolute(folders: dict[str, str], home: str) -> dict[str, str]:
    return {name: os.path.join(home, path[2:]) if path.startswith("~/") else path for name, path in folders.items()}


def chain(folder: str) -> tuple[list[str], str]:
    """The folders that would have to be made for this one, and the one that is there."""
    lacking: list[str] = []
    path = folder.rstrip("/")
    while not os.path.lexists(path):
        lacking.append(path)
        path = os.path.dirname(path)
    return lacking, path


def before(folders: dict[str, str]) -> dict[str, list[str]]:
    """Things that look like ours and were there already, by folder."""
    found = {folders["scratch"]: matching(folders["scratch"], RUN)}
    for kind, pattern in NAMES.items():
        path = os.path.join(folders["shared"], kind).rstrip("/")
        found[path] = matching(path, pattern)
    return found


def matching(folder: str, pattern: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if re.fullmatch(pattern, name))
    except OSError:
        return []


def added(mine: dict[str, Any], names: dict[str, list[str]]) -> list[str]:
    """List what is in `shared` by our names now and was not there before. In a folder that others may use too, only
    what the cluster itself is known to have brought."""
    shared, found = mine["folders"]["shared"], []
    for kind, pattern in NAMES.items():
        folder = os.path.join(shared, kind).rstrip("/")
        for name in matching(folder, pattern):
            ours = not kind or shared in mine["missing"] or name.partition(".")[0] in names.get(kind, [])
            if ours and name not in mine["before"].get(folder, []):
                found.append(os.path.join(folder, name))
    return found


def hand_over(mine: dict[str, Any], heir: dict[str, Any]) -> None:
    """Hand what this cluster added over to the heir, which then removes it: to the heir it was there before."""
    for folder, names in heir["before"].items():
        heir["before"][folder] = [name for name in names if name in mine["before"].get(folder, names)]
    heir["missing"] = sorted({*heir["missing"], *(path for path in mine["missing"] if uses(heir, path, mine))}, key=len)


def uses(heir: dict[str, Any], path: str, mine: dict[str, Any]) -> bool:
    """Tell whether `path`, made by this cluster, holds or lies in a folder that the heir still uses. With another
    machine only `shared` can be the same."""
    folders = heir["folders"] if heir["host"] == mine["host"] else {"shared": heir["folders"]["shared"]}
    return any(path == f or path.startswith(f + "/") or f.startswith(path + "/") for f in folders.values())


def prune(mine: dict[str, Any], heirs: list[dict[str, Any]]) -> list[str]:
    """Removes the folders that were made for us, are empty and of no use to others: the deepest first."""
    durable = mine["folders"]["durable"]
    made = {path for path in mine["missing"] if not any(uses(heir, path, mine) for heir in heirs)}
    if durable in made:  # folders with nothing in them are no checkpoints
        made |= {path for path, _, _ in os.walk(durable)}
    removed = []
    for path in sorted(made, key=len, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(path)
            removed.append(path)
    return removed


def stays(mine: dict[str, Any], heirs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Folders that were made for us and are kept, with what is in them and why."""
    kept = []
    for name, path in mine["folders"].items():
        files, size = contents(path)
        if path in mine["missing"] and files:
            why = "checkpoints are never deleted" if name == "durable" else "not added by this cluster"
            if heirs and name != "durable":
                why = "in use by %s" % ", ".join(sorted(heir["id"] for heir in heirs))
            kept.append({"path": path, "files": files, "bytes": size, "why": why})
    return kept


def contents(folder: str) -> tuple[int, int]:
    files = size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(path, name)).st_size
                files += 1
    return files, size


def remove(path: str) -> str:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
    return path


def users_of(paths: list[str]) -> list[int]:
    """Processes that name one of these paths in their command line or environment: a run, its agent, a build."""
    marks = re.compile(b"|".join(re.escape(os.fsencode(path)) + rb"(?![\w.-])" for path in paths) or b"(?!)")
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                text = b""
                for part in ("cmdline", "environ"):
                    with open("/proc/%s/%s" % (name, part), "rb") as file:
                        text += file.read() + b"\0"
                if marks.search(text):
                    found.append(int(name))
    return found


@contextlib.contextmanager
def locked(shared: str) -> Iterator[str]:
    """The folder of claims, held: nodes may share it."""
    claims = os.path.join(shared, CLAIMS)
    path = os.path.join(claims, "lock")
    while True:
        os.makedirs(claims, mode=0o700, exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # whoever held it has removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(lock)):
                yield claims
                return
        finally:
            os.close(lock)


def listed(claims: str, but: str) -> list[str]:
    return [path for path in (os.path.join(claims, name) for name in sorted(os.listdir(claims)))
            if path.endswith(".json") and path != but]  # fmt: skip


def read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}


def write(path: str, data: dict[str, Any]) -> None:
    temporary = "%s.%d.tmp" % (path, os.getpid())
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def user() -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())


def boot_id() -> str:
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def can_make_environments() -> bool:
    from importlib.util import find_spec

    return bool(find_spec("ensurepip") and find_spec("venv"))


def main(message: dict[str, Any]) -> None:
    """Carry out one command; its answer is on stdout."""
    os.umask(0o077)
    acts = {"look": look, "tidy": tidy, "claim": claim, "release": release}
    try:
        tidy(message)
        answer = acts[message["act"]](message)
    except OSError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
