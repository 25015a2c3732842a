"""A Slurm of a test's own on this machine: munged, slurmctld and one slurmd a node, in a temporary folder.

Nothing of the system's own Slurm is read or started: the daemons have their own configuration, ports, sockets and key,
and are ended by pid. All nodes are this machine, on loopback addresses of their own; a GPU is an empty file.

    python -m tests.slurm    one of two nodes to try by hand, until Ctrl-C
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PARTITIONS = {
    "day": "Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
    "grace": "PriorityTier=1 PreemptMode=REQUEUE GraceTime=60",
    "urgent": "PriorityTier=10 PreemptMode=OFF",
    "physics": "PriorityTier=1 AllowAccounts=physics",
}
CONF = """\
ClusterName=nexatest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,default_queue_depth=100
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=100
InactiveLimit=0
MinJobAge=300
GresTypes=gpu
"""
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"}
START_S, END_S = 60.0, 60.0


def missing() -> str:
    """Why no Slurm can be started here; empty when one can."""
    if lacking := [name for name in NEEDED if shutil.which(name, path=PATH) is None]:
        return f"no {', '.join(lacking)} here: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as their users, which takes root"


@dataclass
class Slurm:
    """A running Slurm; `environment` is what its commands need."""

    root: Path
    nodes: tuple[str, ...]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.root / "slurm.conf"), "PATH": PATH}

    def call(self, *argv: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Standard output of a command of Slurm's. Raises AssertionError with what it says when it fails."""
        made = subprocess.run(
            argv, env={**os.environ, **self.environment, **(environment or {})}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert made.returncode == 0 or not check, f"{argv}: {made.stdout}{made.stderr}"
        return made.stdout if check else made.stdout + made.stderr

    def job(self, number: str) -> dict[str, str]:
        """Fields of a job as `scontrol` tells them."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str, timeout_s: float = 60.0) -> dict[str, str]:
        """Fields of the job once it is in one of these states."""
        until = time.monotonic() + timeout_s
        while (row := self.job(number))["JobState"] not in states:
            assert row["JobState"] not in OVER, f"job {number} is {row} and not {states}"
            assert time.monotonic() < until, f"job {number} is {row} and not {states}\n{self.logs()}"
            time.sleep(0.2)
        return row

    def processes(self) -> list[int]:
        """Processes that descend from the daemons of this Slurm, other than these."""
        marker = f"SLURM_CONF={self.root}/slurm.conf".encode()
        found, ours = [], {os.getpid(), *(one.pid for one in self.daemons)}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if int(entry.name) not in ours and marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        return "\n".join(f"{p.name}: {p.read_text(errors='replace')[-2500:]}" for p in self.root.glob("*.log"))

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """One daemon in the foreground; ended with the others."""
        with open(self.root / "daemons.out", "ab") as out:
            made = subprocess.Popen(
                argv, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self.daemons.append(made)
        return made

    def close(self) -> None:
        """End every job, then every daemon, and what is left of them by pid."""
        self.call("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        self.call("scancel", "--user=root", check=False)
        until = time.monotonic() + END_S
        while self.call("squeue", "-h", check=False).strip() and time.monotonic() < until:
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now, of those that the kernel gives to no connection by itself."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(12000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


@contextlib.contextmanager
def slurm(nodes: int = 2, cpus: int = 4, gpus: int = 2) -> Iterator[Slurm]:
    """A Slurm of so many nodes, each with so many CPUs and GPUs, as long as the block lasts."""
    root = Path(tempfile.mkdtemp(prefix="nexa-slurm-", dir="/tmp"))
    root.chmod(0o755)
    made = Slurm(root, tuple(f"n{number}" for number in range(nodes)))
    try:
        _configure(made, cpus, gpus)
        _start(made)
        yield made
    finally:
        made.close()
        shutil.rmtree(root, ignore_errors=True)


def _configure(made: Slurm, cpus: int, gpus: int) -> None:
    root, ports = made.root, free_ports(1 + len(made.nodes))
    for folder in ("state", "spool", *(f"spool/{name}" for name in made.nodes)):
        (root / folder).mkdir(mode=0o755)
    rows, gres = [CONF.format(host=socket.gethostname().split(".")[0], root=root, ports=ports)], []
    for place, name in enumerate(made.nodes):
        rows.append(
            f"NodeName={name} NodeHostname={socket.gethostname().split('.')[0]} NodeAddr=127.0.0.{place + 1} "
            f"Port={ports[1 + place]} CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 "
            f"RealMemory=2000 Gres=gpu:{gpus} State=UNKNOWN"
        )
        devices = [root / f"gpu.{name}.{number}" for number in range(gpus)]
        for device in devices:
            device.touch()
        gres += [f"NodeName={name} Name=gpu File={device}" for device in devices]
    rows += [f"PartitionName={name} Nodes=ALL MaxTime=1:00:00 {more}" for name, more in PARTITIONS.items()]
    (root / "slurm.conf").write_text("\n".join(rows) + "\n")
    (root / "gres.conf").write_text("\n".join(gres) + "\n")
    key = root / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)


def _start(made: Slurm) -> None:
    root = made.root
    files = [f"--{name}-file={root}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    made.start("munged", "--foreground", f"--socket={root}/munge.socket", *files)
    _until(made, lambda: (root / "munge.socket").exists())
    made.start("slurmctld", "-D", "-i", "-f", f"{root}/slurm.conf")
    for name in made.nodes:
        made.start("slurmd", "-D", "-N", name, "-f", f"{root}/slurm.conf")
    _until(made, lambda: _idle(made) == set(made.nodes))


def _idle(made: Slurm) -> set[str]:
    """Nodes that can take a job; sinfo has a line for each partition of each."""
    lines = made.call("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
    return {name for name, _, state in (line.partition(" ") for line in lines) if state == "idle"}


def _until(made: Slurm, true: object, timeout_s: float = START_S) -> None:
    until = time.monotonic() + timeout_s
    assert callable(true)
    while not true():
        dead: Sequence[object] = [one.args for one in made.daemons if one.poll() is not None]
        said = (made.root / "daemons.out").read_text(errors="replace")[-2000:]
        assert not dead and time.monotonic() < until, f"{dead} ended\n{said}\n{made.logs()}"
        time.sleep(0.1)


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGINT):  # a shell's background ignores the latter
        signal.signal(ending, signal.default_int_handler)
    with slurm() as tried, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={tried.root}/slurm.conf", flush=True)
        signal.pause()
