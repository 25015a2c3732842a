"""`true` on N hosts: loopback addresses of four sshds, so both ends share this machine. Interleaved rounds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.providers.local import free_port
from nexa_dist.run.runner import Runner
from nexa_dist.run.ssh.connections import Ssh, on_all, session
from tests.bench.hosts import SSHD
from tests.e2e.local_cluster import is_open, make_key

SSHDS = 4
FABRIC = """
import sys, time
began = time.monotonic()
from fabric import Connection, ThreadingGroup, Config
hosts, config, key = sys.argv[3:], sys.argv[1], sys.argv[2]
group = ThreadingGroup.from_connections(
    [Connection(h.split(":")[0], port=int(h.split(":")[1]), user="root", connect_kwargs={"key_filename": key},
                config=Config(overrides={"load_ssh_configs": False})) for h in hosts])
imported = time.monotonic() - began
began = time.monotonic()
group.run("true", hide=True)
print(time.monotonic() - began)
"""


@dataclass(frozen=True)
class Field:
    """Addresses that answer ssh, and what is needed to reach them."""

    folder: Path
    addresses: tuple[str, ...]
    port: int

    @property
    def ssh_config(self) -> str:
        return str(self.folder / "ssh_config")

    def cluster(self, count: int) -> Cluster:
        nodes = tuple(Node(f"n{i}", address, 1, self.port) for i, address in enumerate(self.addresses[:count]))
        return Cluster("field", "static", nodes, Layout(sys.executable, "~/s", "~/s", "~/s"), self.ssh_config)

    def argv(self, address: str, *options: str) -> list[str]:
        return ["ssh", "-F", self.ssh_config, *options, f"-p{self.port}", address, "true"]


@contextlib.contextmanager
def field(count: int) -> Iterator[Field]:
    """`count` addresses of four sshds that run in the foreground, as children of ours."""
    with tempfile.TemporaryDirectory(prefix="nexa-fan-") as name:
        folder = Path(name)
        for key in ("host", "client"):
            make_key(folder / key)
        net = f"127.0.{1 + os.getpid() % 200}"
        addresses = tuple(f"{net}.{10 + index}" for index in range(count))
        port = free_port(addresses[0])
        host_key = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text("".join(f"[{one}]:{port} {host_key}" for one in addresses))
        (folder / "ssh_config").write_text(
            f"Host *\n  IdentityFile {folder}/client\n  IdentitiesOnly yes\n  BatchMode yes\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n"
        )
        common = (
            f"Port {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/client.pub\nStrictModes no\n"
            f"UsePAM {'yes' if SSHD.root_is_locked() else 'no'}\nPidFile none\nUseDNS no\n"
            "MaxStartups 500\nMaxSessions 500\n"
        )
        daemons = []
        try:
            for index in range(SSHDS):
                listen = "".join(f"ListenAddress {one}\n" for one in addresses[index::SSHDS])
                (folder / f"sshd{index}").write_text(listen + common)
                argv = [SSHD.find_sshd(), "-D", "-e", "-f", str(folder / f"sshd{index}")]
                daemons.append(subprocess.Popen(argv, stderr=subprocess.DEVNULL))
            end = time.monotonic() + 15
            while not all(is_open(one, port) for one in addresses):
                if time.monotonic() > end:
                    raise RuntimeError("the sshds of this bench do not answer")
                time.sleep(0.1)
            yield Field(folder, addresses, port)
        finally:
            for daemon in daemons:
                daemon.terminate()
                daemon.wait()


def timed(act: Callable[[], None]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def check(argv: list[str]) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def all_at_once(where: Field, count: int, *options: str) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda one: check(where.argv(one, *options)), where.addresses[:count]))


def one_by_one(where: Field, count: int) -> None:
    for one in where.addresses[:count]:
        check(where.argv(one))


def on_nodes(ssh: Ssh) -> None:
    def true(node: Node) -> None:
        if ssh.run(node, ("true",)).code:
            raise RuntimeError(f"true failed on {node.address}")

    on_all(ssh.cluster.nodes, true)


def fabric(where: Field, count: int, python: Path) -> float:
    """Seconds without the import."""
    hosts = [f"{one}:{where.port}" for one in where.addresses[:count]]
    argv = [str(python), "-c", FABRIC, where.ssh_config, str(where.folder / "client"), *hosts]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def clients(where: Field, count: int, python: Path) -> dict[str, Callable[[], list[tuple[str, float]]]]:
    """By name; each answers what it measured, since ours opens its connections and then uses them again."""

    def single(name: str, act: Callable[[], None]) -> Callable[[], list[tuple[str, float]]]:
        return lambda: [(name, timed(act))]

    def ours() -> list[tuple[str, float]]:
        with session(Runner(), where.cluster(count)) as ssh:
            return [
                ("nexa, opening the connections", timed(lambda: on_nodes(ssh))),
                ("nexa, over live connections", timed(lambda: on_nodes(ssh))),
            ]

    made = {
        "sequential": single("ssh, one after another", lambda: one_by_one(where, count)),
        "parallel": single("ssh, all at once", lambda: all_at_once(where, count)),
        "curve": single(
            "ssh, all at once, curve25519", lambda: all_at_once(where, count, "-oKexAlgorithms=curve25519-sha256")
        ),
        "nexa": ours,
    }
    if python.exists():
        made["fabric"] = lambda: [("fabric ThreadingGroup", fabric(where, count, python))]
    return made


def main(counts: list[int], rounds: int, as_json: bool, peers: Path) -> int:
    python = peers / "torchrunx" / "bin" / "python"  # torchrunx brings fabric
    if not python.exists():
        print("fabric: left out: it comes with torchrunx, which is not installed", file=sys.stderr)
    found: dict[tuple[str, int], list[float]] = {}
    with field(max(counts)) as where:
        for turn in range(rounds):
            plan = [(count, name) for count in counts for name in clients(where, count, python)]
            for count, name in random.sample(plan, len(plan)):
                for words, seconds in clients(where, count, python)[name]():
                    found.setdefault((words, count), []).append(seconds)
            print(f"  round {turn + 1} of {rounds}", file=sys.stderr)
    if as_json:
        print(json.dumps([{"client": w, "hosts": n, "seconds": s} for (w, n), s in found.items()]))
        return 0
    print(f"`true` on N hosts, {rounds} interleaved rounds: median (least–most), seconds")
    print(f"{'':34}" + "".join(f"{f'N={count}':>24}" for count in counts))
    for words in dict.fromkeys(words for words, _ in sorted(found, key=lambda k: -statistics.median(found[k]))):
        cells = [found[words, count] for count in counts]
        print(
            f"{words:34}" + "".join(f"{f'{statistics.median(c):.2f} ({min(c):.2f}–{max(c):.2f})':>24}" for c in cells)
        )
    return 0
