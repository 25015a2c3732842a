"""Container engines for the tests: a stand-in that answers as docker does, and podman in a corner of its own.

The stand-in starts no container. What it shares with an engine is what the agent has to cope with: a process that is no
child of the client, gets only the variables that it was named, outlives its client, and stays until it is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

STAND_IN = """
import json, os, signal, subprocess, sys, time
STATE, words = %(state)r, sys.argv[1:]
def options(name): return [w.partition("=")[2] for w in words if w.startswith("--%%s=" %% name)]
def path(name): return os.path.join(STATE, name)
def boxes(): return [json.load(open(path(n))) for n in sorted(os.listdir(STATE)) if n.endswith(".json")]
def living(box):
    try: return os.path.basename(box["id"]).encode() in open("/proc/%%d/environ" %% box["pid"], "rb").read()
    except OSError: return False
def write(name, box):
    json.dump(box, open(path(name + ".new"), "w")); os.rename(path(name + ".new"), path(name))
verb = words[0]
if os.path.exists(path("down")): print("Cannot connect to the Docker daemon", file=sys.stderr); sys.exit(1)
with open(path("calls"), "a") as calls: calls.write(json.dumps(words) + "\\n")
if verb == "--version": print("Docker version 29.8.0, build stand-in")
elif verb == "version": print("29.8.0")
elif verb == "image":
    images = json.load(open(path("images")))
    if words[-1] not in images: print("Error: No such image: " + words[-1], file=sys.stderr); sys.exit(1)
    print("" if "RepoDigests" in words[3] else images[words[-1]])
elif verb == "pull":
    print("Pulling"); offers = json.load(open(path("offers")))
    if words[-1] not in offers: print("manifest for %%s not found" %% words[-1]); sys.exit(1)
    images = {**json.load(open(path("images"))), words[-1]: offers[words[-1]]}
    json.dump(images, open(path("images"), "w"))
elif verb == "ps":
    label = words[words.index("--filter") + 1].split("=", 2)[2]
    print("\\n".join(box["id"] for box in boxes() if box["label"] == label))
elif verb == "rm":
    if os.path.exists(path("stuck")): print("device or resource busy", file=sys.stderr); sys.exit(1)
    for box in boxes():
        if box["id"] in words:
            if living(box): os.killpg(box["pid"], 9)
            os.unlink(path(box["id"] + ".json"))
elif verb == "run":
    command = words[words.index(next(w for w in words if w.startswith("--entrypoint="))) :]
    ident = "%%d%%d" %% (os.getpid(), time.time_ns())
    env = {"PATH": os.path.dirname(sys.executable) + ":/usr/bin:/bin", "STAND_IN": ident}
    for word in options("env"):
        name, equal, value = word.partition("=")
        if equal or name in os.environ: env[name] = value if equal else os.environ[name]
    read_end, write_end = os.pipe()
    if os.fork() == 0:  # the daemon's part
        os.setsid()
        if os.fork(): os._exit(0)
        os.close(read_end); os.set_inheritable(write_end, True)
        # Its variables of ours would make it a process of the run, which no daemon's is.
        os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", %(keeper)r, str(write_end), path(ident + ".json"),
            options("workdir")[0], json.dumps([options("label")[0].partition("=")[2], ident]), json.dumps(env),
            command[0].partition("=")[2], *command[2:]], {"PATH": env["PATH"]})
    os.close(write_end); os.wait()
    pid = int(os.read(read_end, 20) or 0)
    signal.signal(15, lambda *_: os.kill(pid, 15))
    said = b""
    while chunk := os.read(read_end, 20): said += chunk
    sys.exit(int(said or 137))
else: sys.exit(125)
"""
KEEPER = """
import json, os, subprocess, sys
out, note, cwd, told, env, *argv = sys.argv[1:]
out, (label, ident) = int(out), json.loads(told)
os.set_inheritable(out, False)
child = subprocess.Popen(argv, cwd=cwd, env=json.loads(env), start_new_session=True)
with open(note + ".new", "w") as file: json.dump({"id": ident, "label": label, "pid": child.pid}, file)
os.rename(note + ".new", note)
os.write(out, str(child.pid).encode().ljust(20))
code = child.wait()
try: os.unlink(note)
except FileNotFoundError: pass
os.write(out, str(code if code >= 0 else 128 - code).encode())
"""


def stand_in(folder: Path) -> Path:
    """An engine whose state lies in `folder`: images (JSON {name: identifier}), offers (the same, of its registry); a
    file `down` stops its daemon, a file `stuck` keeps it from removing anything."""
    state = folder / "state"
    state.mkdir(parents=True)
    for name in ("images", "offers"):
        (state / name).write_text("{}")
    program = folder / "docker"
    text = STAND_IN % {"state": str(state), "keeper": KEEPER}
    program.write_text(f"#!{sys.executable} -SE\n{text}")
    program.chmod(0o755)
    return program


DEBIAN = "bookworm"
PROGRAMS = ("podman", "runc", "debootstrap")
IMAGE = "localhost/nexa-test:1"
MARK = "/etc/nexa-image"
USUAL = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""PATH of nearly all images."""
LIMIT_S = 1200
"""Longest wait for an engine that unpacks or removes an image, on a machine with much else to do."""
CONF = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
"""


def lacking() -> str:
    """Why podman cannot be had here, else ""."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install {' '.join(missing)})"
    return "" if os.geteuid() == 0 else "an engine of the tests' own needs root"


def debian(*packages: str) -> Path:
    """A tar of Debian's smallest root with these packages, made once for a machine's user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nexa" / "roots"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{DEBIAN}-{'-'.join(sorted(packages))}.tar"
    with open(cache / "lock", "w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        if not kept.exists():
            made = kept.with_suffix(".new")
            shutil.rmtree(made, ignore_errors=True)
            include = [f"--include={','.join(packages)}"] if packages else []
            subprocess.run(
                ["debootstrap", "--variant=minbase", *include, DEBIAN, str(made)], check=True, timeout=LIMIT_S
            )
            shutil.rmtree(made / "var/cache/apt", ignore_errors=True)
            tar = ["tar", "-C", str(made), "-cf", f"{kept}.part", "."]
            subprocess.run(tar, check=True, timeout=LIMIT_S)
            os.rename(f"{kept}.part", kept)
            shutil.rmtree(made)
    return kept


def with_python(tar: Path, to: Path) -> None:
    """A copy of a root's tar that has the interpreter below this one too, where that is no part of a Debian: the
    environments of local nodes are made with it. MARK tells an image from the machine."""
    shutil.copyfile(tar, to)
    mark = to.with_suffix(".mark")
    mark.write_text("an image of the tests'\n")
    subprocess.run(
        ["tar", "-rf", to, "-C", str(mark.parent), f"--transform=s,.*,.{MARK},", mark.name], check=True, timeout=60
    )
    if not sys.base_prefix.startswith("/usr"):
        prefix = sys.base_prefix.lstrip("/")
        subprocess.run(["tar", "-rf", to, "-C", "/", "--exclude=*/test", prefix], check=True, timeout=LIMIT_S)


@contextlib.contextmanager
def podman(folder: Path, *path: str) -> Iterator[Path]:
    """podman with storage, settings and one image of its own, as root: the path of a program that is called as podman
    is. `folder` has a short path, since sockets lie in it. `path` are folders that the image has on PATH first. Its
    limits are those of this process: without CAP_SYS_RESOURCE nobody raises them."""
    limits = {
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "processes": min(resource.getrlimit(resource.RLIMIT_NPROC)[1] & 0xFFFFFF, 4096),
    }
    (folder / "containers.conf").write_text(CONF.format(**limits))
    program = folder / "podman"
    own = f"--root {folder}/root --runroot {folder}/run --tmpdir {folder}/tmp"
    program.write_text(
        f'#!/bin/sh\nexport CONTAINERS_CONF={folder}/containers.conf\nexec {shutil.which("podman")} {own} "$@"\n'
    )
    program.chmod(0o755)
    change = ["--change", f"ENV PATH={':'.join([*path, *USUAL])}"]
    tar = folder / "root.tar"
    try:
        with_python(debian("python3"), tar)
        subprocess.run([program, "import", *change, tar, IMAGE], check=True, timeout=LIMIT_S)
        tar.unlink()
        yield program
    finally:
        try:
            subprocess.run([program, "rm", "--all", "--force"], check=False, timeout=LIMIT_S)
        finally:
            # It mounts its layers' folder over itself, and keeps the group of a container whose monitor was killed.
            for group in Path("/sys/fs/cgroup").glob("*/libpod_parent/libpod-*"):
                with contextlib.suppress(OSError):  # another one's, which is in use
                    group.rmdir()
            subprocess.run(["umount", folder / "root" / "overlay"], check=False, capture_output=True, timeout=60)


def containers(program: Path) -> list[str]:
    """Names of all containers of this engine, also of those that have ended."""
    argv = [program, "ps", "--all", "--format", "{{.Names}}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split()


@contextlib.contextmanager
def podman_somewhere(*path: str) -> Iterator[Path]:
    """`podman` in a folder that goes with it. Skips the test where it cannot be had."""
    if why := lacking():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="nexa-pod-", dir="/var/tmp"))  # an overlay of its own, so no tmpfs
    try:
        with podman(folder, *path) as program:
            yield program
    finally:
        shutil.rmtree(folder)
