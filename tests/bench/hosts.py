"""Loopback hosts: real sshds with homes of their own, and the CPU time that they use."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.local_cluster import HOST_PY, LocalCluster

PR_SET_CHILD_SUBREAPER = 36
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


sys.path.insert(0, str(HOST_PY.parent))
HOST, SSHD = importlib.import_module("host"), importlib.import_module("sshd")


@dataclass(frozen=True)
class Hosts:
    """Two hosts in rank order, and a folder to work in."""

    cluster: LocalCluster
    folder: Path

    @property
    def names(self) -> list[str]:
        return list(self.cluster.nodes)

    @property
    def ssh_config(self) -> Path:
        return self.cluster.ssh_config

    def address(self, name: str) -> str:
        return str(self.cluster.nodes[name]["address"])

    def members(self, name: str) -> set[int]:
        daemon = self.cluster.daemon_pid(name)
        found: set[int] = HOST.members(self.cluster.root / name, daemon)
        return found | {daemon}

    def jobs(self) -> list[int]:
        """Processes of the hosts beside sshd and the parent of all."""
        found = []
        for name in self.names:
            own = self.cluster.daemon_pid(name)
            found += [p for p in self.members(name) - {own} if not _comm(p).startswith("sshd")]
        return sorted(found)

    def end_jobs(self) -> None:
        """Whatever a launcher left."""
        HOST.end(lambda: set(self.jobs()))

    def cpu_s(self) -> float:
        """User and system seconds of all processes of the hosts, those that ended and were waited for included."""
        ticks = 0
        for name in self.names:
            for pid in self.members(name):
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    ticks += sum(int(word) for word in fields[11:15])
        return ticks / TICKS_PER_S

    def write_static(self, python: str, nproc: int) -> Path:
        """A cluster.yaml of these hosts as the user's own."""
        listed = [
            {"host": self.address(name), "port": self.cluster.nodes[name]["port"], "gpus": nproc} for name in self.names
        ]
        text = self.ssh_config.read_text()
        for name in self.names:
            text = text.replace(f"Host {name}\n", f"Host {name} {self.address(name)}\n")
        own = self.folder / "own_ssh_config"
        own.write_text(text)
        path = self.folder / "hosts.yaml"
        path.write_text(json.dumps({"cluster": listed, "ssh_config": str(own), "python": python}))
        return path


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Switched on for as long as the block runs. We adopt orphans, so that their CPU time counts as ours."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="nexa-bench-") as name:
        folder = Path(name)
        cluster = LocalCluster.make(folder / "c", ("n0", "n1"))
        try:
            for node in cluster.nodes:
                done = cluster.host(node, "up")
                if done.returncode:
                    raise RuntimeError(done.stderr)
            yield Hosts(cluster, folder)
        finally:
            cluster.sweep()
