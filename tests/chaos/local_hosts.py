"""A local cluster as the chaos rigs and benches use it: hosts that can be killed, frozen, and made anew."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos import procs

REPO = Path(__file__).resolve().parents[2]
NEXA = (sys.executable, "-m", "nexa_dist")
PROVISION_LIMIT_S = 900.0


sys.path.insert(0, str(REPO / "terraform" / "modules" / "local_node"))
HOST = importlib.import_module("host")


def environment(**more: str) -> dict[str, str]:
    """Of a user who has never used nexa here, but for the shared cache (environments take gigabytes)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NEXA_") or k == "NEXA_SHARED"}
    return {**kept, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", **more}


def end_by_sigterm() -> None:
    """A SIGTERM unwinds this process, so that it takes its hosts down, instead of leaving them."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def wait(holds: Callable[[], Any], limit_s: float, every_s: float = 0.05) -> Any:
    """The first true answer of `holds`, or its last when `limit_s` is over."""
    end = time.monotonic() + limit_s
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(every_s)
    return found


@dataclass(frozen=True)
class LocalHosts:
    """The cluster `name` of a workspace at `root`; nodes n0, n1, … are sshds on loopback addresses."""

    root: Path
    name: str
    nodes: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / ".nexa" / "clusters" / self.name

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh" / "ssh_config"

    def node(self, name: str) -> Path:
        return self.folder / "nodes" / name

    def nexa(self, *words: str, limit_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*NEXA, *words], cwd=self.root, env=environment(**self.env), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=limit_s,
        )  # fmt: skip

    def provision(self) -> None:
        """Makes what is missing, also hosts that were killed."""
        done = self.nexa("provision", "--cluster", f"{self.name}.yaml", limit_s=PROVISION_LIMIT_S)
        if done.returncode:
            raise RuntimeError(f"nexa provision ended with {done.returncode}:\n{done.stderr}")

    def daemon(self, node: str) -> int | None:
        found: int | None = HOST.daemon_pid(self.node(node))
        return found

    def everything(self, node: str) -> set[int]:
        """Every process of the node, its sshd and the parent of all included."""
        daemon = self.daemon(node)
        found: set[int] = HOST.members(self.node(node), daemon)
        return found

    def jobs(self, node: str) -> list[int]:
        """Processes of the node that are neither its sshd nor the parent of all."""
        own = {self.daemon(node)}
        return sorted(pid for pid in self.everything(node) - own if not comm(pid).startswith("sshd"))

    def kill_host(self, node: str) -> None:
        """Every process of it at once, as a machine that loses power."""
        for _ in range(5):
            if not (found := self.everything(node)):
                return
            procs.send(found, signal.SIGSTOP)
            procs.send(self.everything(node), signal.SIGKILL)
            time.sleep(0.02)

    def freeze(self, node: str, thaw: bool = False) -> None:
        """Stops every process of it, or lets them go on."""
        procs.send(self.everything(node), signal.SIGCONT if thaw else signal.SIGSTOP)

    def end_jobs(self) -> None:
        """SIGKILL to whatever a run left. Raises RuntimeError when that does not help."""
        for node in self.nodes:
            self.freeze(node, thaw=True)
            if not wait(partial(self._clean, node), 60.0):
                raise RuntimeError(f"{node}: still alive after SIGKILL: {self.jobs(node)}")

    def _clean(self, node: str) -> bool:
        found = self.jobs(node)
        procs.send(found, signal.SIGKILL)
        return not found


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def local_hosts(root: Path, name: str, nodes: int, gpus: int, **env: str) -> Iterator[LocalHosts]:
    """A provisioned cluster for as long as the block runs; its teardown must leave nothing."""
    made = LocalHosts(root, name, tuple(f"n{index}" for index in range(nodes)), env)
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    text = f"name: {name}\nprovider: local\nnodes: {nodes}\ngpus_per_node: {gpus}\n"
    (root / f"{name}.yaml").write_text(text)
    try:
        made.provision()
        yield made
    finally:
        for node in made.nodes:
            made.freeze(node, thaw=True)
        done = made.nexa("teardown", "--cluster", name, "-y", "--keep-nothing")
    if done.returncode:
        raise RuntimeError(f"nexa teardown ended with {done.returncode}:\n{done.stderr}")
