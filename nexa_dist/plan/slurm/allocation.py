"""An allocation: the job that holds a cluster's nodes, its batch script, and what Slurm says of it. Pure."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.errors import EXIT_BUDGET, NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan.ranks import endpoint
from nexa_dist.plan.slurm.script import resources, told

EXPORTED = ("HOME", "USER", "LOGNAME", "PATH", "LANG")
"""Variables of the submitter that the job gets. No secret: those of a run travel by ssh, as elsewhere."""
QUEUE = "%i|%T|%S|%N|%k|%r"
"""Columns of squeue: number, state, start (expected, or real), nodes, comment, reason."""
BEGUN = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED")
ACCOUNTS = ("JobIDRaw", "State", "ElapsedRaw", "Start", "End", "AllocTRES")
TOKEN_S = 60
"""Seconds that a time limit needs beside the notice."""


@dataclass(frozen=True)
class Asked:
    """What one submission asks for. `folder` is its own, on the file system that all nodes share; `current` a file with
    the token of the submission that the cluster wants."""

    name: str
    token: str
    slurm: SlurmConfig
    folder: str
    current: str
    python: str
    holder: str
    exported: tuple[str, ...] = EXPORTED

    @property
    def options(self) -> list[str]:
        """Options of sbatch. It is not put into the queue again by itself: whoever uses the nodes decides that."""
        mine = told(f"{self.folder}/job.out", self.exported)
        return [
            f"--job-name={self.name}",
            *resources(self.slurm),
            "--no-requeue",
            f"--signal=B:TERM@{self.slurm.notice_s}",
            *mine,
            *self.slurm.options,
            f"--comment={self.token}",
        ]

    @property
    def script(self) -> str:
        """Text of the batch script."""
        words = {"python": self.python, "holder": self.holder, "folder": self.folder, "current": self.current}
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in self.options), "set -u", *self.slurm.shell]
        lines += [f"{key}={shlex.quote(value)}" for key, value in {**words, "submission": self.token}.items()]
        return "\n".join([*lines, *BODY.splitlines()]) + "\n"


BODY = """\
unset SLURM_EXPORT_ENV # what the job has, its step gets too
# A submission whose answer was lost, and in whose place there is another, gives its nodes back at once.
[ "$(cat "$current" 2>/dev/null)" = "$submission" ] || exit 0
step=
# Before the time limit Slurm signals this shell alone: the holders of the nodes get the signal by it.
# shellcheck disable=SC2317 # the trap calls it
notice() {
    case "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" in
    RUNNING | SIGNALING) [ -z "$step" ] || timeout 10 scancel --signal=TERM "$SLURM_JOB_ID" ;;
    esac
}
trap notice TERM
# One task a node: it lets the cluster's key in by ssh, and tells of the notice. All that is started is the job's.
srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 "$python" -I -S "$holder" "$folder" &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$? # a signal ends a wait, not the step
done
exit "$code"
"""


@dataclass(frozen=True)
class Job:
    """One of our jobs as squeue tells it; `start` is empty where Slurm does not say when."""

    number: str
    state: str
    start: str
    nodes: str
    comment: str
    reason: str

    @property
    def waits(self) -> str:
        """Why it waits, and until when, in words."""
        when = f", Slurm expects it to begin at {self.start}" if self.start else ""
        return f"job {self.number} waits ({self.reason or 'not looked at yet'}){when}"


def jobs(text: str) -> list[Job]:
    """Jobs of squeue's answer in the columns of QUEUE."""
    rows = [line.split("|", 5) for line in text.splitlines() if line.count("|") >= 5]
    return [Job(number, state, start.replace("N/A", ""), *rest) for number, state, start, *rest in rows]


def name_of(cluster: str, workspace: str) -> str:
    """Name of a cluster's jobs: of two workspaces of one user each finds its own."""
    return f"nexa-{cluster}-{hashlib.sha256(workspace.encode()).hexdigest()[:8]}"


def asking(config: ClusterConfig, hours: float) -> SlurmConfig:
    """What is asked for; the time limit is what the budget allows, where that is less: then Slurm holds it with nobody
    home. `hours` is infinite without a budget. Raises NexaError when that leaves no time to save."""
    assert config.slurm and config.nodes
    slurm = config.slurm.model_copy(update={"nodes": config.nodes})
    if hours * 3600 >= (slurm.seconds or float("inf")) or hours == float("inf"):
        return slurm
    minutes = int(hours * 60)
    if minutes * 60 <= slurm.notice_s + TOKEN_S:
        raise NexaError(
            f"what is left of budget_usd pays for {minutes} min, and notice_s alone is {slurm.notice_s} s",
            hint="raise budget_usd, or: nexa budget extend",
            code=EXIT_BUDGET,
        )
    return slurm.model_copy(update={"time": str(minutes)})


def digest(slurm: SlurmConfig) -> str:
    """Name of what is asked for, whatever the time limit: by it another wish is told from the same one."""
    return hashlib.sha256(" ".join(resources(slurm.model_copy(update={"time": None}))).encode()).hexdigest()[:16]


def cluster(
    config: ClusterConfig, job: str, doors: Sequence[Mapping[str, object]], layout: Layout, *, ssh_config: str,
    user: str, created_unix: float,
) -> Cluster:  # fmt: skip
    """cluster.json from what the holder of each node told, in rank order."""
    assert config.slurm
    nodes = tuple(
        Node(
            name=name,
            address=str(door["address"]),
            gpus=config.gpus_per_node or 0,
            port=int(str(door["port"])),
            user=user,
            price_usd_per_hour=config.node_usd_per_hour or 0.0,
            instance_id=f"{door['host']}@{job}",
            offer=config.slurm.partition or "slurm",
        )
        for name, door in zip(config.node_names, doors, strict=True)
    )
    folders = {key: getattr(config, key) for key in ("scratch", "shared", "durable") if getattr(config, key)}
    return Cluster(
        name=config.name,
        provider="slurm",
        nodes=nodes,
        layout=replace(layout, **folders),
        ssh_config=ssh_config,
        rdzv=endpoint(nodes[0], config.rdzv_port),
        rdzv_backend=config.rdzv_backend,
        created_unix=created_unix,
    )


def ended_unix(job: Mapping[str, str]) -> float | None:
    """End of a job by `scontrol show job`, which is in local time; None where it does not say."""
    try:
        return time.mktime(time.strptime(job.get("EndTime", ""), "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def accounted(text: str) -> dict[str, str]:
    """Row of sacct's answer in the columns of ACCOUNTS; empty where it has none."""
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) == len(ACCOUNTS) and cells[0]:
            return dict(zip(ACCOUNTS, cells, strict=True))
    return {}
