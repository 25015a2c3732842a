"""The command `diag`: facts of this node that decide whether it can train. The controller judges them."""

from __future__ import annotations

import contextlib
import glob
import os
import resource
import shutil
import socket
import sys
import time
from typing import Any

from ..probe import answer_of, ask, free_port, route_to
from ..protocol import VERSION
from .devices import LIMIT_S, Devices, read

ENVIRONMENT = """\
import importlib.metadata as metadata, importlib.util as util, json, os, sys
found = {"python": ".".join(map(str, sys.version_info[:3])), "torch": None, "cuda": None, "nccl": None}
place = util.find_spec("torch")
if place and place.origin:
    said = {}
    with open(os.path.join(os.path.dirname(place.origin), "version.py")) as file:
        exec(file.read(), said)
    found["torch"], found["cuda"] = str(said["__version__"]), said.get("cuda")
for kind in ("cu13", "cu12", "cu11"):
    try: found["nccl"] = found["nccl"] or metadata.version("nvidia-nccl-" + kind)
    except metadata.PackageNotFoundError: pass
for name in ("transformers", "numpy"):
    try: found[name] = metadata.version(name)
    except metadata.PackageNotFoundError: found[name] = None
print(json.dumps(found))
"""
"""Versions of the interpreter's environment. torch is not imported, which would take seconds: its version.py tells."""
SHORT_MIB, DEEP_MIB = 8, 64
DISK_LIMIT_S = {False: 2.0, True: 20.0}


def diag(message: dict[str, Any], root: str = "/") -> dict[str, Any]:
    """`message`: {"python", "scratch", "peers", "deep", "sudo", "listen" and "port" on the first node}. `root` is
    where /sys, /proc and /dev lie. The clock is read at the beginning and at the end, so that the controller can tell
    skew from the time that the facts take."""
    received = time.time()
    began = time.monotonic()
    until = began + LIMIT_S
    deep = bool(message.get("deep"))
    devices = Devices(root, bool(message.get("sudo")))
    environment = ask([message.get("python") or sys.executable], ENVIRONMENT)
    throttled = _throttled(root)
    answer = {
        "agent": str(VERSION),
        "hostname": socket.gethostname(),
        "kernel": os.uname().release,
        "boot_unix": _boot_unix(root),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "memory": _memory(root),
        "shm_bytes": _size(os.path.join(root, "dev/shm")),
        "limits": {"nofile": _limit(resource.RLIMIT_NOFILE), "memlock": _limit(resource.RLIMIT_MEMLOCK)},
        "disk": disk(message["scratch"], deep),
        "peers": {peer: {**route_to(peer)} for peer in message.get("peers", [])},
        **devices.facts(until),
        "environment": answer_of(environment, max(1.0, until - time.monotonic())),
        "cpu_throttled": _throttled(root) - throttled,
        "seconds": round(time.monotonic() - began, 3),
    }
    for route in answer["peers"].values():
        if route.get("interface"):
            mtu = read(root, "sys/class/net", route["interface"], "mtu")
            route["mtu"] = int(mtu) if mtu else None
    if "listen" in message:
        answer["port"], answer["port_error"] = free_port(message["listen"], message.get("port", 0))
        # A port of its own for the test of the group: the rendezvous' may be wanted the moment after.
        answer["test_port"], _ = free_port(message["listen"], 0)
    return {**answer, "received_unix": received, "answered_unix": time.time()}


def disk(scratch: str, deep: bool) -> dict[str, Any]:
    """Measure the disk of the scratch folder: free bytes and speed; "error" where that fails."""
    try:
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        return {"free_bytes": shutil.disk_usage(scratch).free, **write_speed(scratch, deep)}
    except OSError as error:
        return {"free_bytes": None, "error": str(error)}


def write_speed(folder: str, deep: bool) -> dict[str, Any]:
    """MiB that were written and synced, and the seconds it took. The file has no name, so that nothing is left."""
    block, limit_s = os.urandom(1 << 20), DISK_LIMIT_S[deep]
    path = os.path.join(folder, ".diag.%d" % os.getpid())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
        written, began = 0, time.monotonic()
        with open(fd, "wb", buffering=0) as file:
            most = DEEP_MIB if deep else SHORT_MIB
            while not written or (written < most and time.monotonic() - began < limit_s):  # we may have been asleep
                if file.write(block) != len(block):
                    return {"error": "the disk is full"}
                written += 1
                if written % 8 == 0:  # else a slow disk would show only at the end, and take as long as it likes
                    os.fsync(fd)
            os.fsync(fd)
        return {"mib": written, "seconds": round(time.monotonic() - began, 4)}
    except OSError as error:
        return {"error": str(error)}


def _memory(root: str) -> dict[str, int]:
    """Bytes in all, and that can be had."""
    found = {}
    for line in (read(root, "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[{"MemTotal": "total", "MemAvailable": "available"}[name]] = int(rest.split()[0]) << 10
    return found


def _boot_unix(root: str) -> int | None:
    lines = (read(root, "proc/stat") or "").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("btime ")), None)


def _throttled(root: str) -> int:
    """Counts how often the CPUs were slowed down for their heat since boot."""
    total = 0
    for path in glob.glob(os.path.join(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")):
        with contextlib.suppress(TypeError, ValueError):
            total += int(read(path) or 0)
    return total


def _size(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def _limit(which: int) -> int | None:
    """The hard limit, up to which a program may help itself; None is none."""
    hard = resource.getrlimit(which)[1]
    return None if hard == resource.RLIM_INFINITY else hard
