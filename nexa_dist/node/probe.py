"""The commands `probe` (what a node can do, which way it reaches the others) and `forget`, when nothing came of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import time
from typing import Any

from .code import tree as code_tree
from .oslib import alive, inherited, read_json
from .protocol import VERSION, Spec

VERSIONS = """\
import json, os, sys
def names(folder):
    try: return os.listdir(folder or ".")
    except OSError: return []
def version(name):
    for folder in sys.path:
        for found in names(folder):
            if found.startswith(name + "-") and found.endswith(".dist-info"):
                return found[len(name) + 1 : -len(".dist-info")]
    import importlib.metadata
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
print(json.dumps({"python": ".".join(map(str, sys.version_info[:3])), "torch": version("torch")}))
"""
"""The name of the folder says it at a third of the time that importlib.metadata takes."""


def probe(message: dict[str, Any]) -> dict[str, Any]:
    """Answer what the launch wants to know before anything starts. Each answer maps to a check of the controller.

    `message`: {"python", "scratch", "peers", "have": code that may be there, "listen" and "port" on the first node,
    "inside": a command line that ends with the interpreter, where that is in an image, "warm": see `preload`}.
    """
    scratch = message["scratch"]
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    if "warm" in message:
        preload(**message["warm"])
    asked = ask(message.get("inside") or [message.get("python") or sys.executable])
    answer = {
        "have": [path for path in message.get("have", []) if code_tree.whole(path)],
        "gpus": gpus(),  # the driver may take its time, and so may the interpreter
        **answer_of(asked),
        "version": VERSION,
        "cpus": os.cpu_count(),
        "free_bytes": shutil.disk_usage(scratch).free,
        "unix": time.time(),
        "peers": {peer: route_to(peer) for peer in message.get("peers", [])},
    }
    if "listen" in message:
        answer["port"], answer["port_error"] = free_port(message["listen"], message.get("port", 0))
    return answer


def preload(run_dir: str, spec: Spec, secrets: dict[str, str], after: str = "") -> None:
    """The interpreter that the ranks will be forked from is loaded while the launch goes on.

    `spec` has what is known of it: "argv", "cwd", "env", "nproc", "path", "preload". `after` is the folder of the run
    that goes on here until then. What cannot be had only costs time: the ranks then get interpreters of their own.
    """
    from .warm import client as warm_client

    if alive(read_json(os.path.join(run_dir, "agent.pid"))) or not shutil.which(spec["argv"][0]):
        return  # a layer that is yet to be made has no interpreter
    environment = {**inherited(spec.get("path", [])), **spec["env"], **secrets}
    # As the controller will say when it knows how many CPUs there are: with another number this one does not fit.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // spec["nproc"])))
    try:
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        os.makedirs(spec["cwd"], exist_ok=True)
        warm_client.ensure(spec, environment, run_dir, after)
    except OSError as error:
        print("warm interpreter: %s" % error, file=sys.stderr)


def forget(run_dir: str) -> dict[str, Any]:
    """The launch was refused: the interpreter ends, and a run that has no attempt leaves no folder."""
    from .warm import client as warm_client

    left = warm_client.release(run_dir)
    warm_client.remove_unused(run_dir)
    return {"left": left}


def ask(python: list[str], program: str = VERSIONS) -> subprocess.Popen[str] | OSError:
    """The interpreter of the training, asked by a program that prints JSON; or why it cannot be started."""
    try:
        return subprocess.Popen(
            [*python, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    except OSError as error:
        return error


def answer_of(asked: subprocess.Popen[str] | OSError, limit_s: float = 60.0) -> dict[str, Any]:
    """What it printed; {"error"} where it cannot tell, or takes too long."""
    if isinstance(asked, OSError):
        return {"error": str(asked)}
    try:
        out, err = asked.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.wait()
        return {"error": "the interpreter did not answer within %.0f s" % limit_s}
    try:
        return dict(json.loads(out))
    except ValueError:
        return {"error": err.strip()[-400:] or "exit %d" % asked.returncode}


def gpus() -> list[str]:
    try:
        made = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return made.stdout.split("\n")[:-1] if made.returncode == 0 else []


def free_port(address: str, port: int) -> tuple[int, str]:
    """A port that `address` and torch's store, which listens on every address, can bind now; the wanted one if not 0.

    It is used seconds later, when torch is loaded, so it is none that the kernel may give to a connection till then.
    """
    error: OSError | None = None
    for candidate in [port] if port else random.sample(quiet_ports(), 50):
        try:
            for place in (address, None):
                family, kind, _, _, target = socket.getaddrinfo(
                    place, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )[0]
                with socket.socket(family, kind) as listener:
                    # As torch does: connections of the last run that linger for a minute keep nobody from listening.
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(target)
            return candidate, ""
        except OSError as failed:
            error = failed
    return 0, "%s port %d: %s" % (address, port, error)


def quiet_ports() -> range:
    """Ports that no outgoing connection gets by itself; the kernel's usual ones where this cannot be read."""
    first = 32768
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first = int(file.read().split()[0])
    return range(20000, first if first > 21000 else 32768)


def route_to(peer: str) -> dict[str, str]:
    """Interface and local address by which packets to `peer` leave (no packet is sent)."""
    try:
        family, _, _, _, target = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe_socket:
            probe_socket.connect(target)
            local = probe_socket.getsockname()[0]
    except OSError as error:
        return {"error": str(error)}
    return {"address": local, "interface": interface_of(local), "peer": target[0]}


def interface_of(address: str) -> str:
    import fcntl

    if address.startswith("127.") or address == "::1":
        return "lo"
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address).hex()
        with open("/proc/net/if_inet6") as file:
            return next((line.split()[-1] for line in file if line.startswith(packed)), "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                if socket.inet_ntoa(fcntl.ioctl(query.fileno(), 0x8915, request)[20:24]) == address:  # SIOCGIFADDR
                    return name
    return ""
