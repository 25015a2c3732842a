"""nexa slurm submit: a training, or an array of them, as one job of Slurm's."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.agent_spec import code_folder, secrets
from nexa_dist.ops.runs.code import of_now, send
from nexa_dist.ops.runs.launch import commit
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.plan.slurm.array import Array
from nexa_dist.plan.slurm.bill import Bill, bill
from nexa_dist.plan.slurm.ending import UNSETTLED, WOULD_NEVER, never
from nexa_dist.plan.slurm.script import EXPORTED, Job, script
from nexa_dist.run import files
from nexa_dist.run.code import archive
from nexa_dist.run.slurm import commands
from nexa_dist.run.slurm.commands import Slurm
from nexa_dist.run.slurm.nodes import interpreter, layout
from nexa_dist.run.ssh.connections import Link, Ssh, connect
from nexa_dist.run.workspace import RunFolder

LOOKS, LOOK_S = 6, 0.5
"""Looks at a job that was just submitted, for a reason why it would wait for ever, and seconds between two."""


@dataclass(frozen=True)
class Submitted:
    """A job in Slurm's queue; `number` is empty where nothing was submitted."""

    number: str
    runs: tuple[str, ...]
    script: str
    bill: Bill
    waiting: commands.Job | None = None
    begins: str = ""
    """Words of `sbatch --test-only`, of a job that was not submitted."""


def submit(
    ctx: Context,
    configs: Sequence[TrainConfig],
    array: Array | None,
    points: Sequence[Mapping[str, str]],
    config_file: str,
) -> Submitted:
    """One job with an element for each of `configs`, of which each has its own run. A dry run only asks Slurm when it
    would begin. Raises NexaError, and leaves no run behind then, unless Slurm has its job."""
    slurm, nproc = asked(configs)
    configs = [settled(ctx, ready(config, nproc)) for config in configs]
    link = _here(ctx, slurm, nproc)
    hidden = secrets(ctx, configs[0])
    names = tuple(dict.fromkeys([*(name for name in EXPORTED if name in os.environ), *hidden]))
    codes = of_now(ctx, configs[0])
    cost = bill(slurm, nproc, len(configs))
    if not ctx.dry and shutil.which("sbatch") is None:
        raise NexaError("there is no sbatch here", hint="call nexa on a login node of the Slurm cluster")
    runs = _runs(ctx, configs)
    paths = tuple(str(run.path) for run in runs)
    output = f"{folder(runs[0])}/job{'-%a' if array else ''}.out"
    job = Job(f"nexa-{configs[0].name}", slurm, paths, array, code_folder(link, codes[1]), link.python, link.agent,
              output, names)  # fmt: skip
    text = script(job)
    ours = tuple(run.run_id for run in runs)
    if ctx.dry:
        return Submitted("", ours, text, cost, begins=Slurm(ctx.runner).begins(text, hidden))
    try:
        connect(link.ssh)  # puts the agent there
        send(ctx, [link], codes)
        for run, config, point in zip(runs, configs, points, strict=True):
            _write(ctx, run, config, config_file, codes, link, point)
        files.write_text(folder(runs[0]) / "job.sbatch", text)
        number = Slurm(ctx.runner).submit(text, hidden)
    except BaseException:
        _forget(runs)
        raise
    # From here on there is a job: its runs stay for as long as it may begin.
    for place, run in enumerate(runs):
        own = f"{number}_{array.indices[place]}" if array else number
        path = folder(run) / "job.json"
        files.write_json(path, {**files.read_object(path), "job": own})
    try:
        waiting = _looked_at(ctx, number)
    except Never:
        _forget(runs)
        raise
    except BaseException:
        ctx.say(f"job {number} is in the queue all the same: scancel {number} ends it")
        raise
    return Submitted(number, ours, text, cost, waiting)


def _forget(runs: Sequence[RunFolder]) -> None:
    """Remove the folders of runs of which nothing was begun."""
    for run in runs:
        shutil.rmtree(run.path, ignore_errors=True)


def asked(configs: Sequence[TrainConfig]) -> tuple[SlurmConfig, int]:
    """The section that all elements share, and the ranks of each node. Raises UsageError for what a job cannot be."""
    slurm = configs[0].slurm
    if slurm is None:
        raise UsageError(
            f"{configs[0].name} has no section slurm",
            hint="slurm: {partition: gpu, nodes: 2, gres: 'gpu:4', time: '12:00:00'}",
        )
    if any(config.slurm != slurm for config in configs):
        raise UsageError("--grid: the elements of an array share what they ask of Slurm", hint="submit two arrays")
    if any((config.secrets, config.files) != (configs[0].secrets, configs[0].files) for config in configs):
        raise UsageError("--grid: the elements of an array share secrets and files", hint="submit two arrays")
    shares = {config.nproc_per_node or slurm.gpus for config in configs}
    nproc = shares.pop()
    if nproc is None or shares:
        why = "the elements differ in nproc_per_node" if shares else "nobody says how many ranks a node gets"
        raise UsageError(why, hint="slurm.gres: gpu:N, or nproc_per_node: N")
    return slurm, nproc


def ready(config: TrainConfig, nproc: int) -> TrainConfig:
    """The training as its job runs it. Raises UsageError for keys that need a controller, or nodes of ours."""
    own = config.environment != "light" and (config.backend is None or "environment" in config.model_fields_set)
    for key, given, cure in (
        ("data", config.data, "the nodes share a file system: name its paths"),
        ("apt", config.apt, "the nodes are not nexa's to set up"),
        ("environment", own, "slurm.python names the interpreter, which has what the training imports"),
        ("nodes", config.nodes, "slurm.nodes says how many, slurm.constraint and options which"),
        ("launcher: direct", config.keep_warm, "add preload: false: the job's own end takes its interpreters along"),
        ("on_disconnect: kill", config.on_disconnect == "kill", "a job has no controller that could be gone"),
        ("budget_usd", config.budget_usd, "slurm.time and max_hours bound a job"),
        ("min_nodes", config.min_nodes, "a job gets all of slurm.nodes, or waits"),
    ):
        if given:
            raise UsageError(f"{key}: not for a job of Slurm's", hint=cure)
    replicas = 0 if config.replicas is None else config.replicas  # all nodes see the checkpoints already
    return config.model_copy(update={"nproc_per_node": nproc, "environment": "light", "replicas": replicas})


def _here(ctx: Context, slurm: SlurmConfig, nproc: int) -> Link:
    """The file system of the workspace, as a node would see it."""
    here = layout(ctx.workspace, interpreter(slurm.python))
    cluster = Cluster("slurm", "slurm_job", (Node("n0", socket.gethostname(), nproc),), here)
    return Link(Ssh(ctx.runner, cluster, ""), cluster.nodes[0], os.path.expanduser("~"))


def _runs(ctx: Context, configs: Sequence[TrainConfig]) -> list[RunFolder]:
    if ctx.dry:
        top = ctx.workspace.root / "runs"
        return [RunFolder(top / f"{config.stage}_dry_run_{place}") for place, config in enumerate(configs)]
    return [ctx.workspace.new_run(config.stage, config.name) for config in configs]


def _write(
    ctx: Context,
    run: RunFolder,
    config: TrainConfig,
    config_file: str,
    codes: Sequence[archive.Code],
    link: Link,
    point: Mapping[str, str],
) -> None:
    """job.json and the code, of which every attempt is made."""
    for code in codes:
        archive.keep(run.code, code)
    told = {
        "config": config.model_dump(mode="json"),
        "config_file": config_file,
        "code_hash": codes[0].hash,
        "package_hash": codes[1].hash,
        "git_commit": commit(ctx, config, codes[0]),
        "python": link.python,
        "point": dict(point),
        "submitted_unix": time.time(),
        "root": str(ctx.workspace.root),
    }
    files.write_json(folder(run) / "job.json", told)


class Never(NexaError):
    """A job that Slurm would never start, and that was cancelled."""


def _looked_at(ctx: Context, number: str) -> commands.Job | None:
    """The job as it waits or runs now; None where squeue does not say. One that would wait for ever is cancelled.
    Raises Never then."""
    slurm, found = Slurm(ctx.runner), None
    for look in range(LOOKS):
        if look:
            ctx.sleep(LOOK_S)
        try:
            found = slurm.waiting(number)
        except NexaError as error:
            ctx.say(f"warning: {error}")
            return None
        if found is None or found.state != "PENDING":
            return found
        if never(found.state, found.reason):
            slurm.cancel(number)
            raise Never(f"Slurm would never start job {number}: {found.reason}", hint=WOULD_NEVER)
        if found.reason not in UNSETTLED:
            return found
    return found


def folder(run: RunFolder) -> Path:
    """What only the jobs of a run have: job.json, the specs of its newest attempt, what the script printed."""
    return run.path / "slurm"


def kept(run: RunFolder) -> dict[str, Any]:
    """job.json of a run: what was submitted. Raises NexaError when the run is no job of Slurm's."""
    path = folder(run) / "job.json"
    if not path.exists():
        raise NexaError(f"{run.run_id} is no job of Slurm's: there is no {path}")
    return files.read_object(path)
