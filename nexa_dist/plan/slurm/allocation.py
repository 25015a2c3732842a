"""An allocation: the job that holds a cluster's nodes, its batch script, and what Slurm says of it. Pure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.errors import EXIT_BUDGET, NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan.made import cluster_of, folders
from nexa_dist.plan.slurm.script import EXPORTED, batch, resources, set_variables
from nexa_dist.plan.slurm.script import asked as asked_of

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
        made = asked_of(self.name, self.slurm, ["--no-requeue"], f"{self.folder}/job.out", self.exported)
        return [*made, f"--comment={self.token}"]

    @property
    def script(self) -> str:
        """Text of the batch script."""
        lines = set_variables(
            python=self.python, holder=self.holder, folder=self.folder, current=self.current, submission=self.token
        )
        return batch(self.options, self.slurm, lines, BODY)


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
srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 "$python" -I -S "$holder" door "$folder" &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$? # a signal ends a wait, not the step
done
exit "$code"
"""


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
    nodes = (
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
    own = folders(config, layout.python, layout.scratch, layout.shared, layout.durable)
    return cluster_of(config, nodes, own, ssh_config=ssh_config, created_unix=created_unix)


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
