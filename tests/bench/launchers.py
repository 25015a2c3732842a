"""How each launcher starts the job: the argv, what it needs, and its environment. All use the same torch version."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nexa_dist.ops.providers.local import free_port
from tests.bench.hosts import Hosts

JOB = Path(__file__).with_name("job.py")
REPO = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"


@dataclass
class Job:
    """One launch. The launcher's own files and the marks of the ranks go into `folder`."""

    hosts: Hosts
    folder: Path
    nproc: int
    python: str
    peers: Path
    env: dict[str, str] = field(default_factory=dict)
    """Beside the environment of the bench."""
    cwd: Path | None = None

    @property
    def endpoint(self) -> tuple[str, int]:
        first = self.hosts.address("n0")
        return first, free_port(first)


@dataclass(frozen=True)
class Launcher:
    """`start` answers the argv. `missing` answers why it cannot run here, or nothing."""

    words: str
    start: Callable[[Job], list[str]]
    missing: Callable[[Path], str] = lambda _: ""
    mode: str = ""


def script(job: Job, each: str, environment: str = "") -> list[str]:
    """What users write: ssh to each host in the background, wait for all. `each` sees $i and $address."""
    addresses = " ".join(job.hosts.address(name) for name in job.hosts.names)
    text = textwrap.dedent(f"""\
        pids=
        addresses=({addresses})
        i=0
        for host in {" ".join(job.hosts.names)}; do
            address=${{addresses[$i]}}
            ssh -F {shlex.quote(str(job.hosts.ssh_config))} $host "GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 {each}" &
            pids="$pids $!"
            i=$((i + 1))
        done
        code=0
        for pid in $pids; do wait $pid || code=$?; done
        exit $code
        """)
    path = job.folder / "launch.sh"
    path.write_text(text)
    return ["bash", str(path)]


def c10d(job: Job) -> list[str]:
    host, port = job.endpoint
    # Every loopback address is its own to torchrun: without a word each host would try to hold the store.
    return script(
        job,
        f"{job.python} -m torch.distributed.run --nnodes=2 --nproc-per-node={job.nproc} --rdzv-backend=c10d "
        f"--rdzv-endpoint={host}:{port} --rdzv-id={job.folder.name} --rdzv-conf=is_host=$((1 - i)) "
        f"--local-addr=$address {JOB} {job.folder}",
    )


def static(job: Job) -> list[str]:
    host, port = job.endpoint
    return script(
        job,
        f"{job.python} -m torch.distributed.run --nnodes=2 --nproc-per-node={job.nproc} --node-rank=$i "
        f"--master-addr={host} --master-port={port} {JOB} {job.folder}",
    )


def by_hand(job: Job) -> list[str]:
    """Ranks with their variables set, without torchrun: the least that can be done over ssh."""
    host, port = job.endpoint
    fixed = f"WORLD_SIZE={2 * job.nproc} MASTER_ADDR={host} MASTER_PORT={port} LOCAL_WORLD_SIZE={job.nproc}"
    ranks = " & ".join(
        f"RANK=$((i * {job.nproc} + {local})) LOCAL_RANK={local} {job.python} -u {JOB} {job.folder}"
        for local in range(job.nproc)
    )
    return script(job, f"; export GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 {fixed}; {ranks} & wait")


def nexa(launcher: str, mode: str = "") -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        """In a workspace that stays, as a user's does: only what changed is sent."""
        workspace = job.hosts.folder / "workspace"
        if not workspace.exists():
            subprocess.run(["git", "init", "-q", str(workspace)], check=True)
            (workspace / "README").write_text("The job of this bench lies elsewhere.\n")
        cluster = job.hosts.write_static(job.python, job.nproc)
        train = {
            "name": "bench",
            "script": str(JOB),
            "args": [str(job.folder), *([mode] if mode else [])],
            "launcher": launcher,
            "nproc_per_node": job.nproc,
        }
        (job.folder / "train.yaml").write_text(json.dumps(train))
        job.env |= {"PYTHONPATH": str(REPO)}
        job.cwd = workspace
        return [sys.executable, "-m", "nexa_dist", "run", str(job.folder / "train.yaml"), "--cluster", str(cluster)]

    return start


def peer(peers: Path, name: str) -> str:
    """Makes the virtual environment of one peer, once. Answers why there is none, or nothing."""
    python = peers / name / "bin" / "python"
    if python.exists() and not subprocess.run([str(python), "-c", f"import {name}"], capture_output=True).returncode:
        return ""
    try:
        subprocess.run([sys.executable, "-m", "venv", str(peers / name)], check=True, capture_output=True)
        pip = [str(python), "-m", "pip", "install", "-q", TORCH, "numpy", name]
        subprocess.run(pip, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"{name} cannot be installed: {str(error.stderr).strip().splitlines()[-1:]}"
    return ""


def torchrunx(job: Job) -> list[str]:
    """Its own API. It would start a host of a loopback address without ssh, so the names resolve elsewhere here."""
    names = job.hosts.names
    text = f"""\
import socket, sys
sys.path.insert(0, {str(JOB.parent)!r})
import job, torchrunx, cloudpickle
cloudpickle.register_pickle_by_value(job)
plain = socket.gethostbyname
socket.gethostbyname = lambda name: "192.0.2.1" if name in {names!r} else plain(name)
if __name__ == "__main__":
    made = torchrunx.Launcher(hostnames={names!r}, workers_per_host={job.nproc}, backend="gloo",
                              ssh_config_file={str(job.hosts.ssh_config)!r})
    made.run(job.rank, {str(job.folder)!r})
"""
    path = job.folder / "launch.py"
    path.write_text(text)
    job.env |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return [str(job.peers / "torchrunx" / "bin" / "python"), str(path)]


def no_deepspeed(peers: Path) -> str:
    if not shutil.which("pdsh"):
        return "pdsh is not installed (apt-get install pdsh)"
    return peer(peers, "deepspeed")


def deepspeed(job: Job) -> list[str]:
    host, port = job.endpoint
    hostfile = job.folder / "hostfile"
    hostfile.write_text("".join(f"{name} slots={job.nproc}\n" for name in job.hosts.names))
    options = f"-F {job.hosts.ssh_config}"
    programs = job.peers / "deepspeed" / "bin"
    job.env |= {
        "PDSH_SSH_ARGS_APPEND": options,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
    }
    (job.folder / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=lo\nOMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    job.env["DS_ENV_FILE"] = str(job.folder / ".deepspeed_env")
    return [
        *(
            str(programs / "python"),
            str(programs / "deepspeed"),
            f"--hostfile={hostfile}",
            "--no_ssh_check",
            "--no_local_rank",
        ),
        *(f"--master_addr={host}", f"--master_port={port}", f"--num_gpus={job.nproc}", str(JOB), str(job.folder)),
    ]


LAUNCHERS = {
    "c10d": Launcher("bash: ssh + torchrun c10d (the floor)", c10d),
    "static": Launcher("bash: ssh + torchrun static", static),
    "by-hand": Launcher("bash: ssh, variables set, no torchrun", by_hand),
    "nexa": Launcher("nexa run, launcher: torchrun", nexa("torchrun")),
    "nexa-direct": Launcher("nexa run, launcher: direct", nexa("direct")),
    "nexa-warm": Launcher("nexa, direct, relaunch after a fault", nexa("direct", "fault"), mode="fault"),
    "torchrunx": Launcher("torchrunx", torchrunx, lambda peers: peer(peers, "torchrunx")),
    "deepspeed": Launcher("deepspeed, pdsh", deepspeed, no_deepspeed),
}
