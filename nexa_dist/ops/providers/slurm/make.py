"""The allocation made: submitted once, waited for, and its nodes' doors found."""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, NoNodes, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.contract import Made, Wish
from nexa_dist.ops.providers.slurm.allocation import GONE_S, LOOK_S, Allocation, Record, tail_of
from nexa_dist.plan.slurm.allocation import BEGUN, Asked, asking, cluster, digest
from nexa_dist.plan.slurm.ending import UNSETTLED, WOULD_NEVER, never
from nexa_dist.plan.slurm.script import EXPORTED
from nexa_dist.run import agent_file, files
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.slurm.commands import Job
from nexa_dist.run.slurm.nodes import interpreter, layout
from nexa_dist.run.ssh import connections, keys
from nexa_dist.run.ssh.connections import Link
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.shape import Strange, record, text, whole

QUEUE_MINUTES = 1440.0
"""Longest wait in the queue where `wait_for_capacity_minutes` does not say it."""
NEVER_LOOKS = 3
"""Looks in a row that give a reason for which a job waits for ever, before it is believed."""
DOOR = record({"host": text(253, r"[A-Za-z0-9._-]+"), "address": text(60, r"[0-9.]+"), "port": whole(1, 65535)})


def asked(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish, token: str) -> Asked:
    """What is submitted, with the time that the budget leaves. Raises NexaError when that is too little."""
    assert config.slurm
    mine, python = Allocation(ctx, folder), interpreter(config.slurm.python)
    layout(ctx.workspace, python)  # a path that no shell reads otherwise
    hours = wish.hours((config.node_usd_per_hour or 0.0) * (config.nodes or 0))
    place = mine.place(token)
    exported = tuple(name for name in EXPORTED if name in os.environ)
    return Asked(mine.name, token, asking(config, hours), str(place), str(mine.current), python,
                 f"{place}/{agent_file.NAME}", exported)  # fmt: skip


def make(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Made:
    """The nodes of the one job of this cluster. Slurm gives and takes them together, so with lost nodes all are others:
    the job is ended, and another one submitted."""
    assert config.slurm
    mine = Allocation(ctx, folder)
    keys.ensure_cluster_keys(ctx.runner, folder.ssh, folder.name, config.node_names)
    if wish.lost:
        _refuse_ended(mine)
        with ctx.phase("slurm: end the allocation"), folder.journalled("scancel", replace=list(wish.lost)) as done:
            done["jobs"] = mine.end()
        mine.close_periods()
    with folder.journalled("create", nodes=config.node_names) as done:
        job = _job(mine, config, wish)
        done["job"] = job.number
        with ctx.phase(f"slurm: job {job.number}"):
            job = _begun(mine, config, job)
        token = Record.of(folder).token
        files.write_text(mine.place(token) / "claimed", f"{ctx.now():.0f}\n")
        wish.begin()
        with ctx.phase(f"slurm: {config.nodes} nodes answer"):
            doors = [_door(mine, config, job, token, place) for place in range(config.nodes or 0)]
    here = layout(ctx.workspace, interpreter(config.slurm.python))
    made = cluster(
        config, job.number, doors, here, ssh_config=str(folder.ssh_config),
        user=getpass.getuser(), created_unix=Record.of(folder).created_unix,
    )  # fmt: skip
    keys.write_ssh_config(folder.ssh, made.nodes)
    with ctx.phase("slurm: agent and interpreter"), connections.session(ctx.runner, made) as ssh:
        connections.on_all(connections.connect(ssh), lambda link: _proven(link, config.boot_timeout_s))
    return Made(made, {}, {})


def _proven(link: Link, timeout_s: float) -> None:
    """Import torch there, which from a file system that is shared takes a while the first time. Raises NexaError."""
    done = link.ssh.run(link.node, (link.python, "-I", "-c", "import torch"), timeout_s=timeout_s)
    if done.code:
        hint = "slurm.python names the interpreter, by one path on every node, with torch"
        raise CommandFailed(f"{link.node.name}: {link.python}", done, hint=hint)


def _refuse_ended(mine: Allocation) -> None:
    """Raises NoNodes when somebody else has cancelled the job: that is a wish, and no loss. Why a job ended is known
    once it has left the queue."""
    known, until = Record.of(mine.folder), mine.ctx.now() + GONE_S
    if known.ours:
        return
    while mine.ctx.now() < until:
        job = mine.job(known.job)
        if job is None or job.state in ("RUNNING", "PENDING"):
            break
        mine.ctx.sleep(LOOK_S)
    if mine.told(known.job).get("JobState") == "CANCELLED":
        raise NoNodes(f"job {known.job} was cancelled", hint="nexa provision asks for another allocation")


def _job(mine: Allocation, config: ClusterConfig, wish: Wish) -> Job:
    """The cluster's job: the one that is there, else a new one. Raises UsageError when it asks for something else."""
    job = mine.found()
    wanted = digest(asking(config, float("inf")))
    if job and Record.of(mine.folder).asked not in ("", wanted):
        raise UsageError(
            f"job {job.number} of cluster {config.name} asks for something else than the file says now",
            hint="nexa teardown gives it back, then nexa provision",
        )
    return job or _submit(mine, config, wish, wanted)


def _submit(mine: Allocation, config: ClusterConfig, wish: Wish, wanted: str) -> Job:
    """Submit what the record says is to be. Raises NexaError with sbatch's words, and nothing is left then."""
    asked(mine.ctx, mine.folder, config, wish, "x")  # what is wrong with the wish is said before it is written down
    mine.close_periods()
    known = mine.fresh(wanted)
    job = asked(mine.ctx, mine.folder, config, wish, known.token)
    place = mine.place(known.token)
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    files.write_bytes(Path(job.holder), agent_file.content())
    told = {"nodes": config.node_names, "ssh": str(mine.folder.ssh), "come_by_s": config.boot_timeout_s}
    files.write_json(place / "told.json", told)
    files.write_text(place / "job.sbatch", job.script)
    number = mine.slurm.submit(job.script)
    files.write_json(place / "job.json", {"job": number})
    Record(known.token, known.asked, number, created_unix=known.created_unix).save(mine.folder)
    return Job(number, "PENDING", "", "", known.token, "")


def _begun(mine: Allocation, config: ClusterConfig, job: Job) -> Job:
    """The job once it has nodes. Says why it waits. Raises NexaError, and the job is cancelled, when it would wait for
    ever or has waited for too long; where we are ended it waits on, and the next nexa provision finds it."""
    ctx, said, bad = mine.ctx, "", 0
    minutes = config.wait_for_capacity_minutes or QUEUE_MINUTES
    until = ctx.now() + minutes * 60
    while job.state not in BEGUN:
        bad = bad + 1 if never(job.state, job.reason) else 0
        if bad >= NEVER_LOOKS:
            mine.end()
            raise NexaError(f"Slurm would never start job {job.number}: {job.reason}", hint=WOULD_NEVER)
        if ctx.now() > until:
            mine.end()
            raise NexaError(
                f"no nodes within {minutes:g} minutes: {job.waits}; it was cancelled",
                hint="wait_for_capacity_minutes in the cluster's file says how long to wait",
            )
        if job.reason not in UNSETTLED and job.waits != said:
            said = job.waits
            ctx.say(f"  {said}")
        ctx.sleep(LOOK_S)
        job = _looked_at(mine, job)
    return job


def _looked_at(mine: Allocation, job: Job) -> Job:
    """The job as the queue has it now. Raises NexaError when it has left it."""
    now = mine.job(job.number)
    if now is None:
        state = mine.told(job.number).get("JobState", "gone")
        printed = tail_of(mine.place(Record.of(mine.folder).token) / "job.out")
        raise NexaError(f"job {job.number} is {state}" + (f": {printed}" if printed else ""),
                        hint="nexa provision asks for another allocation")  # fmt: skip
    return now


def _door(mine: Allocation, config: ClusterConfig, job: Job, token: str, place: int) -> dict[str, Any]:
    """Where the sshd of one node listens, once it has said so."""
    path, until = mine.place(token) / f"node_{place}.json", mine.ctx.now() + config.boot_timeout_s
    while not _is_there(path):
        _looked_at(mine, job)
        if mine.ctx.now() > until:
            raise NexaError(
                f"{config.node_names[place]} of job {job.number} has no sshd after {config.boot_timeout_s:.0f} s: "
                + (tail_of(path.with_name("job.out")) or "its task printed nothing"),
                hint="login host and nodes have to share the workspace's file system; nexa teardown gives them back",
            )
        mine.ctx.sleep(LOOK_S)
    try:
        return dict(DOOR(json.loads(path.read_bytes())))
    except (ValueError, Strange) as error:
        raise NexaError(f"{path} is no place of an sshd: {error}") from None


def _is_there(path: Path) -> bool:
    """Whether a file that another node writes is there: a listing asks the file system's server, where a look for the
    name may be answered from what it said before."""
    return path.name in os.listdir(path.parent)
