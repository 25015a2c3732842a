"""Provider slurm by the contract: the job's allocation, asked for, looked at, given back."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.contract import Planned, Wish
from nexa_dist.ops.providers.slurm.allocation import Allocation
from nexa_dist.ops.providers.slurm.make import asked, make
from nexa_dist.plan.health.lost import CloudWord
from nexa_dist.plan.slurm.allocation import ACCOUNTS, BEGUN, accounted
from nexa_dist.plan.slurm.bill import bill
from nexa_dist.run.workspace import ClusterFolder

__all__ = ["destroy", "make", "plan", "proof", "says", "usage"]

DRY = "submission"


def plan(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Planned:
    """The batch script, and when Slurm would begin it. Nothing is submitted."""
    job = asked(ctx, folder, config, wish, DRY)
    mine = Allocation(ctx, folder)
    cost = bill(job.slurm, config.gpus_per_node or 0, 1)
    begins = mine.slurm.begins(job.script)
    with contextlib.suppress(NexaError):
        if there := next((one for one in mine.jobs() if one.state in BEGUN), None):
            begins = f"job {there.number} is {there.state} on {there.nodes}"
    changes = [] if "is RUNNING on" in begins else [{"address": f"job {job.name}", "change": {"actions": ["create"]}}]
    report = {"sbatch": job.script, "gpu_hours": cost.gpu_hours, "usd": cost.usd, "begins": begins}
    return Planned(None, {"resource_changes": changes}, report=report,
                   lines=(*job.script.splitlines(), "", cost.words, f"  {begins}"))  # fmt: skip


def dry_run(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> list[str]:
    """Lines of --dry-run for what would be submitted."""
    job = asked(ctx, folder, config, wish, DRY)
    return [f"would run: sbatch --parsable, as {job.name}, with", *(f"  {line}" for line in job.script.splitlines())]


def name(ctx: Context, folder: ClusterFolder) -> str:
    """Name of the cluster's jobs."""
    return Allocation(ctx, folder).name


def proof(receipt: Mapping[str, Any]) -> str:
    return f"squeue has no job of it ({', '.join(receipt['destroyed']) or 'none'} cancelled)"


def says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """State of a node by the job that has it."""
    number = node.instance_id.rpartition("@")[2]
    mine = Allocation(ctx, ctx.workspace.cluster(cluster.name))
    job = mine.job(number)
    if job is None:
        told = mine.told(number)
        why = told.get("Reason", "None")
        return "off", f"job {number} is {told.get('JobState', 'gone')}" + (f" ({why})" if why != "None" else "")
    words: dict[str, CloudWord] = {"RUNNING": "runs", "COMPLETING": "unwell"}
    return words.get(job.state, "unwell"), f"job {number} is {job.state}"


def usage(ctx: Context, folder: ClusterFolder) -> float:
    """Record usage by our own clock, and of a job that is over by Slurm's."""
    Allocation(ctx, folder).close_periods()
    return ctx.now()


def destroy(ctx: Context, folder: ClusterFolder, scope: Any = None) -> dict[str, Any]:
    """Cancel the cluster's jobs until squeue has none of them. What the runs left on the shared file system stays."""
    mine = Allocation(ctx, folder)
    nodes, kept = _told(folder)
    with ctx.phase("slurm: end the allocation"), folder.journalled("scancel") as done:
        try:
            known = [node["instance_id"].rpartition("@")[2] for node in nodes]
            ended = done["jobs"] = mine.end()
        except StillRunning:
            raise
        except NexaError as error:
            raise StillRunning(f"not proven gone: {error}", hint=error.hint or "run nexa teardown again") from error
    with contextlib.suppress(NexaError):  # what it cost is counted to now then
        mine.close_periods()
    numbers = list(dict.fromkeys([*known, *ended]))
    return {
        "nodes": nodes,
        "destroyed": ended,
        "jobs": [_accounted(mine, number) for number in numbers],
        "kept": kept,
        "left": {"jobs": []},
    }


def _accounted(mine: Allocation, number: str) -> dict[str, Any]:
    """A job that has left the queue, by the accounting where one is kept, else by what slurmctld remembers."""
    made = mine.slurm.accounts(number, ",".join(ACCOUNTS))
    row = {} if made.code else accounted(made.out.decode(errors="replace"))
    told = mine.told(number)
    return {
        "job": number,
        "state": row.get("State") or told.get("JobState", ""),
        "accounting": row or f"none: {made.tail(1)}" if made.code else row or "none: sacct knows no such job",
    }


def _told(folder: ClusterFolder) -> tuple[list[dict[str, Any]], list[str]]:
    """Nodes as the cluster knows them, and the folder that outlives them."""
    with contextlib.suppress(NexaError):
        made = folder.load() if folder.json.exists() else None
        if made:
            rows = [
                {"name": n.name, "address": n.address, "port": n.port, "instance_id": n.instance_id} for n in made.nodes
            ]
            return rows, [f"{made.layout.scratch}: what the runs have left there"]
    return [], []
