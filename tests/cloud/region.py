"""The emulated region: `with region("mine") as here:` in tests, `scripts/region` by hand.

A region is one daemon (tests/cloud/daemon.py) and a folder. Commands run in it by `here.prefix` with `here.env`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cloud import image, net, traces
from tests.cloud.client import Region

BASE = image.REGIONS
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
START_LIMIT_S = 180.0
END_LIMIT_S = 400.0
HOURS = 12.0
"""A region that was forgotten ends by itself."""
NOT_INSIDE = re.compile(r"AWS_.*|(?i:(https?|all|no|ftp)_proxy)")
"""Variables of the caller that must not reach a command in the region: real accounts, ways out."""


class RegionError(RuntimeError):
    """The region cannot be had; the text says why and what to do."""


class Unable(RegionError):
    """This machine cannot have a region at all."""


@dataclass(frozen=True)
class Running:
    """A region that is up."""

    name: str
    token: str
    pid: int
    port: int
    """Of 127.0.0.1: leads to the API from outside."""

    @property
    def folder(self) -> Path:
        return BASE / self.name

    @property
    def env(self) -> dict[str, str]:
        """What commands in the region need; no real account can be meant."""
        return {
            "AWS_ENDPOINT_URL": f"http://{net.API}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "NEXA_SSH_FROM": net.SSH_FROM,
            "NEXA_REGION": self.name,
            "NEXA_REGION_TOKEN": self.token,
        }

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command, runs it in the region."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")

    @property
    def client(self) -> Region:
        """The control API, from wherever the caller is."""
        return Region(f"http://127.0.0.1:{self.port}")

    def environ(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        """`env` over `base` without what does not belong into the region."""
        return {key: value for key, value in base.items() if not NOT_INSIDE.fullmatch(key)} | self.env

    def machines(self) -> dict[str, dict[str, Any]]:
        """`pid` and `up_s` of every machine that is on, by instance id."""
        found: dict[str, dict[str, Any]] = self.client.state()["machines"]
        return found

    def console(self, instance_id: str) -> str:
        """What the machine has said since it booted; kept after its end."""
        path = self.folder / "consoles" / f"{instance_id}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def folder_of(name: str) -> Path:
    if not NAME.fullmatch(name):
        raise RegionError(f"{name!r} is no name of a region: use a-z, 0-9 and '-'")
    return BASE / name


def is_held(folder: Path) -> bool:
    """Whether a daemon lives, or is being started: it holds the lock for as long as it does."""
    try:
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def find(name: str) -> Running | None:
    """The region of this name, if it is up."""
    folder = folder_of(name)
    if is_held(folder):
        with contextlib.suppress(FileNotFoundError):
            return Running(**json.loads((folder / "state.json").read_bytes()))
    return None


def settled(name: str) -> Running | None:
    """As `find`, but waits for one that is just coming up or going down."""
    deadline = time.monotonic() + START_LIMIT_S
    while not (found := find(name)) and is_held(folder_of(name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def names() -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(BASE) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:  # it comes with the first region, and goes with the last
        return []


def up(
    name: str, say: Callable[[str], None] = image.say_nothing, child: bool = False
) -> tuple[Running, subprocess.Popen[bytes] | None]:
    """Brings the region up, unless it is. With `child` it ends when this process does. Raises RegionError."""
    folder = folder_of(name)
    if why := image.missing_here():
        raise Unable(why)
    if importlib.util.find_spec("moto") is None or importlib.metadata.version("moto") < "5.2":
        raise Unable(f"{sys.executable} has no moto of 5.2 or newer (hint: scripts/setup dev installs it)")
    if found := settled(name):
        return found, None
    try:
        image.ensure(say)
    except image.ImageError as error:
        raise RegionError(str(error)) from error
    with image.locked(image.cache() / "up.lock"):
        if is_held(folder):
            daemon = None  # somebody else was faster
        else:
            daemon = _start(name, folder, child)
    if daemon is not None:
        return _answering(name, daemon), daemon
    if found := settled(name):
        return found, None
    raise RegionError(f"region {name}, which another command was starting, did not come up")


def _start(name: str, folder: Path, child: bool) -> subprocess.Popen[bytes]:
    if folder.exists() and (remains := down(name)):
        raise RegionError(f"a dead region {name} left what could not be removed: {'; '.join(remains)}")
    folder.mkdir(parents=True, mode=0o755)
    token = secrets.token_hex(8)
    (folder / "token").write_text(token)
    argv = [sys.executable, "-m", "tests.cloud.daemon", str(folder), name, token, str(HOURS)]
    with open(folder / "lock", "a") as lock, open(folder / "daemon.log", "wb") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return subprocess.Popen(
            [*argv, *([str(os.getpid())] if child else [])],
            cwd=image.REPO,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock.fileno()],  # the lock is its own from here on
        )


def _answering(name: str, daemon: subprocess.Popen[bytes]) -> Running:
    """Waits until the new region's API answers. Raises RegionError with the daemon's last words."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and daemon.poll() is None:
        if found := find(name):
            try:
                found.client.state()
                return found
            except OSError:
                pass  # not yet
            except RuntimeError:
                break  # it answers, and is broken: the log says how
        time.sleep(0.05)
    said = (folder_of(name) / "daemon.log").read_text(errors="replace").strip().splitlines()[-15:]
    daemon.kill()
    daemon.wait()
    down(name)
    raise RegionError("the region did not come up:\n" + "\n".join(said))


def down(name: str) -> list[str]:
    """Ends the region and everything in it, also a dead one's remains. Returns what is left: nothing if all is well."""
    folder, found = folder_of(name), settled(name)
    try:
        token = (folder / "token").read_text()
    except FileNotFoundError:
        token = ""
    held = None
    mark = traces.Mark(folder, token)
    if found:
        with contextlib.suppress(OSError):  # it is just ending by itself
            held = os.open(f"/proc/{found.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)  # keeps its number from reuse
            mark = traces.Mark(folder, token, os.fstat(held).st_ino)
            os.kill(found.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_LIMIT_S
        while traces.is_alive(found.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
    traces.end_all(mark)
    if held is not None:
        os.close(held)
    shutil.rmtree(folder, ignore_errors=True)
    # Whoever is coming up makes the folder of all regions, and then its own in it, under this lock.
    with contextlib.suppress(OSError), open(image.cache() / "up.lock", "a") as coming_up:
        fcntl.flock(coming_up, fcntl.LOCK_EX | fcntl.LOCK_NB)
        BASE.rmdir()
    return traces.left(traces.Mark(folder, token))


@contextlib.contextmanager
def region(name: str, say: Callable[[str], None] = image.say_nothing) -> Iterator[Running]:
    """A region for as long as the block runs; it ends with this process too. Raises RegionError."""
    running, daemon = up(name, say, child=True)
    try:
        yield running
    finally:
        remains = down(name)
        if daemon is not None:
            daemon.wait(timeout=60)
    if remains:
        raise RegionError(f"region {name} left: {'; '.join(remains)}")
