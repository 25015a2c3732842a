"""A node's settings and its folder <root>/<node>: made, marked as ours, removed. Standard library, Python 3.9+."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import HostError, boot_id, processes

MARKER, TMP = ".nexa-local-root", ".tmp"
UNFINISHED = MARKER + TMP
"""What is left of a marker whose writer was killed."""
NODE_NAME = re.compile(r"n(0|[1-9][0-9]{0,3})")
LIMITS = ("MAX_S", "LEASE_S", "IDLE_S")
"""When the node switches itself off, in seconds: after it was switched on, after the last sign of life of a controller,
after the last one of a run. 0 is never."""


@dataclass(frozen=True)
class Settings:
    cluster: str
    node: str
    root: Path
    address: str
    port: int
    ssh_dir: Path
    limits: tuple[int, ...] = (0, 0, 0)

    @property
    def folder(self) -> Path:
        return self.root / self.node

    @classmethod
    def from_environment(cls) -> Settings:
        env = {key: os.environ.get("NEXA_LOCAL_" + key, "") for key in
               ("CLUSTER", "NODE", "ROOT", "ADDRESS", "PORT", "SSH_DIR")}  # fmt: skip
        limits = [os.environ.get("NEXA_LOCAL_" + key, "0") for key in LIMITS]
        if not NODE_NAME.fullmatch(env["NODE"]):
            raise HostError(f"not a node name: {env['NODE']!r}")
        if not re.fullmatch(r"127(\.\d{1,3}){3}", env["ADDRESS"]) or not env["PORT"].isdecimal():
            raise HostError(f"not a loopback address and port: {env['ADDRESS']!r} {env['PORT']!r}")
        if not all(re.fullmatch(r"[0-9]{1,10}", limit) for limit in limits):
            raise HostError(f"not whole numbers of seconds: {', '.join(limits)}")
        return cls(
            cluster=env["CLUSTER"],
            node=env["NODE"],
            root=checked_root(env["ROOT"]),
            address=env["ADDRESS"],
            port=int(env["PORT"]),
            ssh_dir=checked_root(env["SSH_DIR"]),
            limits=tuple(map(int, limits)),
        )


def checked_root(text: str) -> Path:
    if not text.startswith("/") or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise HostError(f"not an absolute path without control characters: {text!r}")
    path = Path(os.path.realpath(text))
    if len(path.parts) < 2:
        raise HostError("the root folder cannot be /")
    return path


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + TMP)
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def root_lock(root: Path) -> Iterator[None]:
    """Keeps making and removing of the root apart. Held on the parent, since the root comes and goes."""
    handle = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_marker(root: Path) -> None:
    """Refuses a folder that is not a root of ours. A missing or empty one is fine."""
    if read_json(root / MARKER).get("made_by") == "nexacompute":
        return
    with contextlib.suppress(FileNotFoundError):  # looked at last: the end of another node may just remove it all
        if set(os.listdir(root)) <= {UNFINISHED}:
            return
        raise HostError(f"{root} is not a folder of local nodes ({MARKER} is missing); nothing was touched")


def make_folder(settings: Settings) -> None:
    root = settings.root
    root.parent.mkdir(parents=True, exist_ok=True)
    with root_lock(root):
        check_marker(root)
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.geteuid():
            raise HostError(f"{root} belongs to another user")
        owner = read_json(root / MARKER).get("cluster", settings.cluster)
        if owner != settings.cluster:
            raise HostError(f"{root} holds the nodes of cluster {owner}, not of {settings.cluster}")
        write_json(root / MARKER, {"made_by": "nexacompute", "cluster": settings.cluster})
        for name in ("", "home", "scratch"):
            (settings.folder / name).mkdir(mode=0o700, exist_ok=True)


def remove_folder(root: Path, node: str) -> None:
    if not root.parent.is_dir():
        return
    with root_lock(root):
        folder = root / node
        if folder.is_dir() and not folder.is_symlink():
            for path, names, files in os.walk(folder):  # a job may have left folders that nobody can enter
                for name in {"tmp.json", "warm.json"}.intersection(files):
                    remove_temporary(Path(path, name))
                for name in names:
                    child = Path(path, name)
                    if not child.is_symlink():
                        child.chmod(0o700)
            shutil.rmtree(folder)
        left = set(os.listdir(root)) if root.is_dir() else set()
        if left and left <= {MARKER, UNFINISHED}:
            for name in (UNFINISHED, MARKER):
                (root / name).unlink(missing_ok=True)
            root.rmdir()


def remove_temporary(note: Path) -> None:
    """What a run and its warm interpreter have in the real machine's /tmp, where they ended with this one: the agent's
    notes say where."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        told = json.loads(note.read_text())
        made = told if note.name == "tmp.json" else os.path.dirname(told.get("socket"))
        if os.path.basename(made).startswith(("nexa-run-", "nexa-warm-")):
            shutil.rmtree(made, ignore_errors=True)


def daemon_pid(folder: Path) -> int | None:
    """The node's daemon if it lives; the start time and boot tell it from a later process of that pid."""
    record = read_json(folder / "daemon.json")
    process = processes().get(record.get("pid", -1))
    if process and (process.start_ticks, boot_id()) == (record.get("start_ticks"), record.get("boot_id")):
        return int(record["pid"])
    return None
