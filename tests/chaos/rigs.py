"""The two places where the nemesis works: an emulated region, and a local cluster (cheaper, without host faults)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.chaos import procs
from tests.chaos.local_hosts import NEXA, LocalHosts, environment, local_hosts
from tests.cloud.region import Running, region

CANARIES = {"WANDB_API_KEY": "c0ffee" * 6 + "abcd", "HF_TOKEN": "hf_canaryCANARYcanaryCANARY"}
CLUSTER = """\
name: chaos
provider: aws
nodes: 2
gpus_per_node: 2
max_hours: 4
boot_timeout_s: 20
bucket: nexa-chaos
offers: [{type: g5.12xlarge, zone: us-east-1a}, {type: g5.12xlarge, zone: us-east-1b}]
"""
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


@dataclass(frozen=True)
class Host:
    """One machine of the cluster that is on. `ident` is another one when the node was made anew."""

    node: str
    ident: str
    root: Path
    """Its file system, as seen from here."""
    scratch: str
    """Absolute path there."""
    members: Callable[[], list[int]]
    """Its processes, as this machine numbers them."""
    inside: tuple[str, ...] = ()
    """Put before a command, runs it among the mounts of the machine."""

    def path(self, there: str) -> Path:
        return self.root / there.lstrip("/")

    def run_dir(self, run_id: str) -> Path:
        return self.path(f"{self.scratch}/{run_id}")


class Rig(Protocol):
    """`workspace` is where nexa is called; its cluster is named `chaos`."""

    workspace: Path
    local: bool

    def begin(self, *words: str, log: Path) -> subprocess.Popen[bytes]: ...
    def hosts(self) -> list[Host]: ...
    def mend(self) -> None: ...
    def instances(self) -> tuple[tuple[str, str], ...]: ...
    def nodes(self) -> tuple[str, ...]: ...
    def do(self, verb: str, host: Host, **how: Any) -> None: ...


def start(prefix: tuple[str, ...], words: tuple[str, ...], folder: Path, env: Mapping[str, str], log: Path) -> Any:
    with open(log, "ab") as out:
        return subprocess.Popen(
            [*prefix, *NEXA, *words], cwd=folder, env={**env, **CANARIES}, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def finished(child: subprocess.Popen[bytes], what: str, log: Path, limit_s: float = 900.0) -> None:
    """Waits for a command that has to succeed. Raises RuntimeError with its last words."""
    try:
        code = child.wait(limit_s)
    except subprocess.TimeoutExpired:
        procs.kill_trees([child.pid])
        code = child.wait()
    if code:
        raise RuntimeError(f"nexa {what} ended with {code}:\n{log.read_text(errors='replace')[-3000:]}")


@dataclass
class RegionRig:
    """Two spot nodes with two ranks each in an emulated region."""

    here: Running
    workspace: Path
    env: dict[str, str] = field(default_factory=dict)
    local: bool = False

    def __post_init__(self) -> None:
        self.env = {**environment(), **self.here.env, "NEXA_SETTLE_S": "3"}
        (self.workspace / "chaos.yaml").write_text(CLUSTER)

    def begin(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = start(self.here.prefix, words, self.workspace, self.env, log)
        return child

    def _billed(self) -> list[dict[str, Any]]:
        rows = self.here.client.state()["instances"]
        return [
            row for row in rows if row["state"] in ("pending", "running") and row["tags"].get("nexa:cluster") == "chaos"
        ]

    def hosts(self) -> list[Host]:
        pids = {ident: fact["pid"] for ident, fact in self.here.machines().items() if fact.get("pid")}
        found = []
        for row in self._billed():
            if (pid := pids.get(row["id"])) and (kind := procs.namespace(pid, "pid")):
                members = _in_namespace(kind)
                inside = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", "--")
                root = Path(f"/proc/{pid}/root")
                node = row["tags"]["nexa:node"]
                found.append(Host(node, row["id"], root, "/opt/nexa/scratch", members, inside))
        return sorted(found, key=lambda host: host.node)

    def mend(self) -> None:
        """Both nodes are there and reachable, whatever the seed before did."""
        self.here.client.clear()
        for row in self._billed():
            with contextlib.suppress(RuntimeError):
                self.here.client.heal(row["id"])
        log = self.workspace / "provision.log"
        finished(self.begin("provision", "--cluster", "chaos.yaml", "-y", log=log), "provision", log)

    def instances(self) -> tuple[tuple[str, str], ...]:
        return tuple((row["tags"]["nexa:node"], row["id"]) for row in self._billed())

    def nodes(self) -> tuple[str, ...]:
        return ("n0", "n1")

    def do(self, verb: str, host: Host, **how: Any) -> None:
        """fail, reclaim, notice, partition or heal."""
        getattr(self.here.client, verb)(host.ident, **how)

    def end(self) -> None:
        log = self.workspace / "teardown.log"
        finished(self.begin("teardown", "--cluster", "chaos.yaml", "-y", "--keep-nothing", log=log), "teardown", log)


def _in_namespace(kind: int) -> Callable[[], list[int]]:
    def members() -> list[int]:
        return [pid for pid in procs.table() if procs.namespace(pid, "pid") == kind]

    return members


@dataclass
class LocalRig:
    """Two sshds of this machine, two ranks each. Mounts are of this process's own namespace."""

    cluster: LocalHosts
    workspace: Path
    local: bool = True

    def begin(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = start((), words, self.workspace, environment(), log)
        return child

    def hosts(self) -> list[Host]:
        return [
            Host(node, node, Path("/"), f"{self.cluster.node(node)}/home/scratch", self._members(node))
            for node in self.cluster.nodes
        ]

    def _members(self, node: str) -> Callable[[], list[int]]:
        return lambda: sorted(self.cluster.everything(node))

    def mend(self) -> None:
        self.cluster.provision()

    def instances(self) -> tuple[tuple[str, str], ...]:
        return ()

    def nodes(self) -> tuple[str, ...]:
        return ()

    def do(self, verb: str, host: Host, **how: Any) -> None:
        raise ValueError(f"{verb} needs machines of a region")


def own_mounts() -> None:
    """From here on, mounts of this process and of what it starts are seen by nobody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace of its own (needs root)")


@contextlib.contextmanager
def rig(local: bool, folder: Path) -> Iterator[Rig]:
    """A provisioned cluster for as long as the block runs."""
    workspace = folder / "w"
    if local:
        own_mounts()
        with local_hosts(workspace, "chaos", 2, 2) as hosts:
            yield LocalRig(hosts, workspace)
        return
    workspace.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(workspace)], check=True)
    with region(f"nemesis-{os.getpid()}") as here:
        made = RegionRig(here, workspace)
        made.mend()
        yield made
        made.end()
