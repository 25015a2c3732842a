"""The training environments below a folder of a node: one looked for, all of them listed, old ones removed.

look    {"env": folder or "", "room": folder, "use": from now on it is in use}
                                                 {"made": what nexa-env.json says or null, "python3", "free_bytes"}
list    {"envs": folder}                         {"rows": [{"name", "bytes", "used_unix", "busy", "made"}],
                                                 "free_bytes"}
prune   {"envs", "keep": names, "need_bytes", "quiet_s", "dry", "tools", "cache"}    {"removed": rows, "free_bytes"}

The newest use of an environment is the time of its `.complete`. Standard library only, Python 3.9+.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

NAME = re.compile("[0-9a-f]{16}")
LEFT = re.compile(r"([0-9a-f]{16})\.(inputs|taken|gone)")
"""Folders that a killed build, a killed fetch or a killed removal leaves beside an environment."""


def main(message: dict[str, Any], _: Callable[..., None]) -> dict[str, Any]:
    acts: dict[str, Callable[..., dict[str, Any]]] = {"look": look, "list": listed, "prune": pruned}
    return acts[message.pop("act")](**message)


def look(env: str, room: str, use: bool) -> dict[str, Any]:
    """Look whether the environment is there."""
    made = None
    if env:
        with contextlib.suppress(FileNotFoundError):
            mark = os.path.join(env, ".complete")
            os.utime(mark) if use else os.stat(mark)
            made = told(env)
    python3 = shutil.which("python3") or ""
    return {"made": made, "python3": python3, "free_bytes": free(room)}


def told(env: str) -> dict[str, Any]:
    with open(os.path.join(env, "nexa-env.json"), encoding="utf-8") as file:
        made = json.load(file)
    return made if isinstance(made, dict) else {}


def free(path: str) -> int:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def listed(envs: str) -> dict[str, Any]:
    mapped = in_memory(envs)
    rows = []
    for name in sorted(os.listdir(envs)) if os.path.isdir(envs) else []:
        env = os.path.join(envs, name)
        if NAME.fullmatch(name) and os.path.isdir(env):
            made: dict[str, Any] | None = None
            with contextlib.suppress(OSError, ValueError):
                used = os.stat(os.path.join(env, ".complete")).st_mtime
                made = told(env)
            used = used if made is not None else os.stat(env).st_mtime
            rows.append({"name": name, "bytes": size(env), "used_unix": used, "busy": name in mapped, "made": made})
    return {"rows": rows, "free_bytes": free(envs)}


def size(folder: str) -> int:
    """Bytes on the disk, of each file once."""
    seen, total = set(), 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                at = os.lstat(os.path.join(path, name))
                if at.st_ino not in seen:
                    seen.add(at.st_ino)
                    total += at.st_blocks * 512
    return total


def in_memory(envs: str) -> set[str]:
    """Names of environments that a process here runs in: by its command, or by a library that it has loaded."""
    inside, found = re.compile(re.escape(os.fsencode(envs)) + rb"/([0-9a-f]{16})[/.]"), set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for file in ("cmdline", "maps"):
            with contextlib.suppress(OSError), open("/proc/%s/%s" % (pid, file), "rb") as text:
                found |= {name.decode() for name in inside.findall(text.read())}
    return found


def pruned(
    envs: str, keep: list[str], need_bytes: int, quiet_s: float, dry: bool, tools: str, cache: str
) -> dict[str, Any]:
    """Removes those of the user's that nobody uses, the longest unused first, until `need_bytes` are free (0: all of
    them). None that was used in the last `quiet_s` seconds: a run may be about to start in it."""
    there = listed(envs)["rows"]
    may = [row for row in there if row["made"] is None or "freeze" in row["made"]]
    gone: list[dict[str, Any]] = []
    for row in sorted(may, key=lambda row: row["used_unix"]):
        if need_bytes and free(envs) >= need_bytes:
            break
        quiet = row["made"] is None or row["used_unix"] < time.time() - quiet_s
        if row["name"] not in keep and not row["busy"] and quiet and (dry or removed(envs, row["name"])):
            gone.append(row)
    if not dry:
        for name in os.listdir(envs) if os.path.isdir(envs) else []:
            left = LEFT.fullmatch(name)
            if left and not os.path.exists(os.path.join(envs, left[1])):
                with held(envs, left[1]) as ours:
                    if ours:
                        shutil.rmtree(os.path.join(envs, name), ignore_errors=True)
        if gone and cache:
            forget_wheels(envs, gone, tools, cache)
    return {"removed": gone, "free_bytes": free(envs)}


@contextlib.contextmanager
def held(envs: str, name: str) -> Any:
    """True with the lock of a build in hand, else False."""
    with os.fdopen(os.open(os.path.join(envs, name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            yield False
        else:
            yield True


def removed(envs: str, name: str) -> bool:
    """Remove an environment; True when it is gone. It is renamed first, so that nobody takes half of it for whole."""
    env = os.path.join(envs, name)
    with held(envs, name) as ours:
        if ours:
            shutil.rmtree(env + ".gone", ignore_errors=True)
            os.rename(env, env + ".gone")
            shutil.rmtree(env + ".gone", ignore_errors=True)
        return bool(ours)


def forget_wheels(envs: str, gone: list[dict[str, Any]], tools: str, cache: str) -> None:
    """Delete from uv's own cache the packages that no environment has any more: their files are the same ones, so the
    disk gets nothing back before."""
    left: set[str] = set()
    for folder, names, _ in os.walk(envs):
        left |= {name.partition("-")[0].replace("_", "-").lower() for name in names if name.endswith(".dist-info")}
        if os.path.basename(folder) == "site-packages":
            names.clear()
    had = {re.split("==| @ ", line)[0].lower() for row in gone if row["made"] for line in row["made"]["freeze"]}
    uv = shutil.which("uv") or next(
        (os.path.join(tools, n, "bin", "uv") for n in sorted(os.listdir(tools)) if re.fullmatch(r"uv-[0-9.]+", n)), None
    )
    if uv and had - left:
        argv = [uv, "cache", "clean", *sorted(re.sub("[-_.]+", "-", name) for name in had - left)]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(argv, env={**os.environ, "UV_CACHE_DIR": cache}, capture_output=True, timeout=300)
