"""The command `probe`: what a node can do, which way it reaches the others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from typing import Any

from . import VERSION


def probe(message: dict[str, Any]) -> dict[str, Any]:
    """What the launch wants to know before anything starts. Each answer maps to a check of the controller."""
    python = message.get("python") or sys.executable
    script = (
        "import json,sys,importlib.metadata as m\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return None\n"
        "print(json.dumps({'python':'.'.join(map(str,sys.version_info[:3])),'torch':v('torch')}))"
    )
    try:
        made = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60)
        found = json.loads(made.stdout) if made.returncode == 0 else {"error": made.stderr.strip()[-400:]}
    except (OSError, subprocess.TimeoutExpired) as error:
        found = {"error": str(error)}
    scratch = message["scratch"]
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    answer = {
        **found,
        "agent": VERSION,
        "hostname": socket.gethostname(),
        "cpus": os.cpu_count(),
        "gpus": gpus(),
        "home": os.path.expanduser("~"),
        "free_bytes": shutil.disk_usage(scratch).free,
        "unix": time.time(),
        "peers": {peer: route_to(peer) for peer in message.get("peers", [])},
    }
    if "listen" in message:
        answer["port"], answer["port_error"] = free_port(message["listen"], message.get("port", 0))
    return answer


def gpus() -> list[str]:
    try:
        made = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return made.stdout.split("\n")[:-1] if made.returncode == 0 else []


def free_port(address: str, port: int) -> tuple[int, str]:
    """A port that can be bound now on `address`; the wanted one when it is not 0."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind(target)
            return listener.getsockname()[1], ""
    except OSError as error:
        return 0, "%s port %d: %s" % (address, port, error)


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
