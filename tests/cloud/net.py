"""Network namespaces of the emulated region: the region itself, bridges of its VPCs, links to its machines.

Every namespace here is anonymous: it lives as long as processes and sockets in it, so nothing is left when they end.
Addresses: the API on 198.51.100.10, the controller on 198.51.100.1. Nothing leads out of the region.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import ipaddress
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

CONTROLLER = "198.51.100.1"
API = "198.51.100.10"
SSH_FROM = "198.51.100.0/24"
METADATA = "169.254.169.254"
CLONE_NEWNET = 0x40000000
HERE = "/proc/thread-self/ns/net"
_LIBC = ctypes.CDLL(None, use_errno=True)


class NetError(RuntimeError):
    """A command or a system call on namespaces failed; the text names it."""


def call(name: str, *args: int) -> None:
    if getattr(_LIBC, name)(*args):
        code = ctypes.get_errno()
        raise NetError(f"{name}: {os.strerror(code)}")


def ip(*lines: str, allow_failure: bool = False) -> None:
    """Runs lines of `ip -batch` in this thread's namespace."""
    argv = ["ip", *(["-force"] if allow_failure else []), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True, timeout=300)
    if done.returncode and not allow_failure:
        raise NetError(f"ip: {done.stderr.strip()}\n{'; '.join(lines)}")


def fresh() -> int:
    """Puts this thread into a new network namespace without IPv6, and returns a descriptor of it."""
    call("unshare", CLONE_NEWNET)
    for scope in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        if path.exists():
            path.write_text("1")
    ip("link set lo up")
    return os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """This thread, and what it starts, in another namespace for a while."""
    back = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("setns", namespace, CLONE_NEWNET)
        yield
    finally:
        call("setns", back, CLONE_NEWNET)
        os.close(back)


def machine_namespace() -> int:
    """A new namespace with the metadata service's address; this thread stays where it is."""
    back = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        made = fresh()
        ip(f"addr add {METADATA}/32 dev lo")
        return made
    finally:
        call("setns", back, CLONE_NEWNET)
        os.close(back)


def open_region() -> int:
    """Makes this thread's new namespace the region: call it before any other thread is started."""
    namespace = fresh()
    ip(f"addr add {CONTROLLER}/32 dev lo", f"addr add {API}/32 dev lo")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")  # "unreachable" is said at once, and every time
    return namespace


def short(prefix: str, name: str) -> str:
    """A link's name of at most 15 characters."""
    return prefix + hashlib.sha256(name.encode()).hexdigest()[:12]


def mac(address: str) -> str:
    """The link address that goes with an IPv4 address, so that a machine made anew in its place is found at once."""
    return "02:77:" + ipaddress.IPv4Address(address).packed.hex(":")


class Links:
    """Bridges and links in the region's namespace. Used by one thread that is in it."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def plug(self, machine: str, namespace: int, vpc: str, subnet: str, private: str, public: str | None) -> None:
        """Gives a machine's namespace eth0 with its addresses, on the bridge of its VPC. Raises NetError."""
        network = ipaddress.ip_network(subnet)
        gateway = f"{network.network_address + 1}/{network.prefixlen}"
        bridge, link = short("br", vpc), short("ve", machine)
        if bridge not in self._known:
            # An address of its own: a bridge else takes that of a port, and every machine's idea of its gateway
            # would be wrong for up to 45 s after a port has gone.
            ip(
                f"link add {bridge} address {mac(str(network.network_address + 1))} type bridge",
                f"link set {bridge} up",
            )
            self._known.add(bridge)
        if f"{bridge} {gateway}" not in self._known:
            ip(f"addr add {gateway} dev {bridge}")
            self._known.add(f"{bridge} {gateway}")
        peer = f"peer name eth0 address {mac(private)} mtu 9001 netns /proc/{os.getpid()}/fd/{namespace}"
        ip(f"link add {link} mtu 9001 type veth {peer}")
        ip(f"link set {link} master {bridge} up")
        with inside(namespace):
            ip(
                f"addr add {private}/{network.prefixlen} dev eth0",
                *([f"addr add {public}/32 dev eth0"] if public else []),
                "link set eth0 up",
                # As if translated: what leaves the VPC comes from the public address, so VPCs may overlap.
                f"route add default via {network.network_address + 1}" + (f" src {public}" if public else ""),
            )
        # A machine without a public address is reached by its private one, as over a VPN.
        ip(f"route replace {public or private}/32 dev {bridge} src {CONTROLLER}")

    def unplug(self, machine: str, public: str | None) -> None:
        gone = [f"link del {short('ve', machine)}", *([f"route del {public}/32"] if public else [])]
        ip(*gone, allow_failure=True)

    def cut(self, machine: str, down: bool) -> None:
        ip(f"link set {short('ve', machine)} {'down' if down else 'up'}", allow_failure=True)


def listen(address: str, port: int) -> socket.socket:
    """A listening socket of this thread's namespace; it stays there whoever serves it."""
    made = socket.create_server((address, port), backlog=64)
    made.settimeout(None)
    return made


def forward(door: socket.socket, target: tuple[str, int]) -> None:
    """Carries every connection of `door` to `target`, which lies in the namespace of this process. Returns at once."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def carry(caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError), socket.create_connection(target, timeout=10) as inner:
            inner.settimeout(None)
            back = threading.Thread(target=pump, args=(inner, caller), daemon=True)
            back.start()
            pump(caller, inner)
            back.join()

    def accept() -> None:
        while True:
            try:
                caller, _ = door.accept()
            except OSError:
                return  # closed
            threading.Thread(target=carry, args=(caller,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
