"""The image of the emulated region's machines: a layer over this machine's /usr and /etc, baked once and cached.

It holds cloud-init, sshd and a warmed training environment, as a Deep Learning AMI holds its own. The folder of a
bake is named by everything that it is made from, so it is never changed: it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).resolve().parent / "guest"
INPUTS = {
    "lock.txt": REPO / "docker" / "lock" / "train.txt",
    "torch.txt": REPO / "docker" / "cuda_torch.txt",
    "uv.txt": REPO / "ansible" / "roles" / "uv_env" / "files" / "uv.txt",
    "make_env.py": REPO / "ansible" / "roles" / "uv_env" / "files" / "make_env.py",
}
PACKAGES = (
    *("cloud-init", "iproute2", "openssh-server", "procps", "python3", "python3-apt", "python3-venv", "rsync", "sudo"),
    *("e2fsprogs", "fdisk", "wireguard-go", "wireguard-tools"),
)
TOOLS = ("apt-get", "dpkg-query", "ip", "mount", "nsenter", "pivot_root", "setpriv", "unshare")
REGIONS = Path(os.environ.get("NEXA_REGION_DIR", "/var/tmp/nexa-region"))
"""Folders of the regions that are up, with their machines' disks."""
BACKEND = "auto"
SHARED = "/opt/nexa/shared"
BAKE_LIMIT_S = 1800
NAMESPACES = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
KEPT_OF_VAR = ("cache/debconf", "lib/apt", "lib/dpkg", "lib/pam", "lib/systemd", "lib/ucf")
SETTINGS = ("PIP_", "UV_", "SSL_", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


class ImageError(RuntimeError):
    """The image cannot be baked here; the text says why."""


def say_nothing(_: str) -> None: ...


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nexa" / "region"


def missing_here() -> str | None:
    """Why this machine cannot be the ground of a region, in words; None if it can."""
    if os.geteuid() != 0:
        return "the emulated region needs root: it makes namespaces and overlay mounts"
    lacking = [
        tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    if lacking:
        return f"the emulated region needs these programs of a Debian or Ubuntu machine: {', '.join(lacking)}"
    for folder in (cache(), REGIONS):
        if _filesystem(folder) == "overlayfs":  # as in a container: an overlay cannot be stacked on it
            return f"{folder} is on an overlay: name folders on a disk in XDG_CACHE_HOME and NEXA_REGION_DIR"
    done = subprocess.run([*NAMESPACES, "--net", "true"], capture_output=True, text=True)
    if done.returncode:
        return f"this machine lets nobody make namespaces: {done.stderr.strip()}"
    return None


def _filesystem(folder: Path) -> str:
    """Of the folder, or of its nearest parent that exists."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return subprocess.run(["stat", "-f", "-c", "%T", str(there)], capture_output=True, text=True).stdout.strip()


def recipe() -> str:
    """The name of the bake: a hash of all that goes into it and of what it is laid over."""
    files = [*sorted(GUEST.iterdir()), *INPUTS.values(), Path(__file__), Path("/etc/os-release")]
    below = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", "libc6", "systemd", *PACKAGES], capture_output=True
    ).stdout
    parts = [platform.machine().encode(), below, *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def env_hash(python: str) -> str:
    """The name that the bootstrap gives the training environment of an interpreter of this version."""
    texts = [INPUTS["lock.txt"].read_text(), INPUTS["torch.txt"].read_text(), python, BACKEND]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hold(layer: Path) -> int:
    """A descriptor that keeps the bake from being removed for as long as it is open."""
    held = os.open(layer.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def ensure(say: Callable[[str], None] = say_nothing) -> Path:
    """The layer's folder, baked if it is not there. Raises ImageError."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    layer = folder / recipe()
    if (layer / "image.json").exists():
        return layer
    with locked(folder / "bake.lock"):
        if not (layer / "image.json").exists():
            sweep(folder, layer.name)
            bake(folder, layer, say)
    return layer


def sweep(folder: Path, keep: str) -> None:
    """Removes older bakes that no region uses and what killed bakes left. The caller holds the bake's lock."""
    for path in folder.iterdir():
        if not path.is_dir() or path.name == keep:
            continue
        lock = path.with_suffix(".lock")
        with open(lock, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # a region stands on it
            shutil.rmtree(path)
            lock.unlink()


def bake(folder: Path, layer: Path, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    say(f"baking the image {layer.name} (once; about a minute)")
    temp = Path(tempfile.mkdtemp(prefix=".bake-", dir=folder))
    try:
        _prepare(temp)
        _run(temp, say)
        python = (temp / "layer" / "opt" / "python-version").read_text().strip()
        (temp / "layer" / "opt" / "python-version").unlink()
        env = f"{SHARED}/envs/{env_hash(python)}"
        if not (temp / "layer" / env.lstrip("/") / ".complete").exists():
            raise ImageError(f"the bake ended without {env}")
        size_mb = _size_mb(temp / "layer")
        facts = {"python": python, "env": env, "mb": size_mb, "baked_s": round(time.monotonic() - began, 1)}
        (temp / "layer" / "image.json").write_text(json.dumps(facts) + "\n")
        shutil.rmtree(layer, ignore_errors=True)
        os.rename(temp / "layer", layer)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    say(f"baked in {time.monotonic() - began:.0f} s, {size_mb} MB in {layer}")


def _prepare(temp: Path) -> None:
    """What the bake starts from: its inputs, a /var of its own with the package database, no /usr/local."""
    layer = temp / "layer"
    for part in ("usr/local", "etc", "var", "opt"):
        (layer / part).mkdir(parents=True)
    os.setxattr(layer / "usr" / "local", "trusted.overlay.opaque", b"y")
    for name in KEPT_OF_VAR:
        if (source := Path("/var", name)).is_dir():
            shutil.copytree(source, layer / "var" / name, symlinks=True)
    for name in ("backups", "cache/apt/archives/partial", "lib/misc", "local", "log/apt", "mail", "spool"):
        (layer / "var" / name).mkdir(parents=True)
    (layer / "var" / "tmp").mkdir()
    (layer / "var" / "tmp").chmod(0o1777)
    (layer / "var" / "run").symlink_to("/run")
    (layer / "var" / "lock").symlink_to("/run/lock")
    (layer / "etc" / "resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
    (temp / "inputs").mkdir()
    for path in GUEST.iterdir():
        shutil.copy(path, temp / "inputs")
    for name, path in INPUTS.items():
        shutil.copy(path, temp / "inputs" / name)


def _run(temp: Path, say: Callable[[str], None]) -> None:
    """Runs bake.sh in the root that enter.sh makes of `temp`, with the network of this machine."""
    find_links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
    uv_cache = cache().parent / "uv-cache"
    uv_cache.mkdir(parents=True, exist_ok=True)
    binds = [f"{temp}/inputs /mnt", f"{uv_cache} /srv/uv-cache"]
    binds += [f"{path} {path}" for path in find_links.replace(",", " ").split() if Path(path).is_dir()]
    request = {
        "tools": SHARED,
        "inputs": "/mnt",
        "backend": BACKEND,
        "find_links": find_links,
        "cache": "/srv/uv-cache",
    }
    env = {key: value for key, value in os.environ.items() if key.upper().startswith(SETTINGS)}
    env |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NEXA_BINDS": "\n".join(binds), "UV_LINK_MODE": "copy"}
    argv = ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "sh", str(GUEST / "enter.sh"), str(temp), "", "bake"]
    argv += ["sh", "/mnt/bake.sh", json.dumps(request), *PACKAGES]
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            said = _follow(run, say)
        except BaseException:
            run.kill()
            raise
    for bind in binds:  # the mount points of the bake are no part of the image
        with contextlib.suppress(OSError):
            os.removedirs(temp / "layer" / bind.split()[1].lstrip("/"))
    if run.returncode:
        raise ImageError(f"the image could not be baked (exit {run.returncode}):\n{said}")


def _follow(run: subprocess.Popen[str], say: Callable[[str], None]) -> str:
    """Tells the bake's steps as they come; returns its last lines."""
    assert run.stdout is not None
    lines: list[str] = []
    end = time.monotonic() + BAKE_LIMIT_S
    for line in run.stdout:
        lines = [*lines[-30:], line.rstrip()]
        if line.startswith("bake: "):
            say(line.strip())
        if time.monotonic() > end:
            raise ImageError(f"the bake took over {BAKE_LIMIT_S} s")
    run.wait(timeout=60)
    return "\n".join(lines)


def _size_mb(folder: Path) -> int:
    done = subprocess.run(["du", "-sm", str(folder)], capture_output=True, text=True)
    return int(done.stdout.split()[0])
