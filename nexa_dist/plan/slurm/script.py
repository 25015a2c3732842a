"""The batch script of a job. Pure: the same job, the same text.

It is short on purpose: whoever reads it sees which resources are asked for, how the ranks of each node are started, and
what a signal does. What is decided before and after the step is Python's (ops/slurm/job.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.plan.slurm.array import Array

EXPORTED = ("HOME", "USER", "LOGNAME", "PATH", "LANG")
"""Variables of the submitter that every job of ours gets; Slurm adds its own."""
AGAIN, OVER = 75, 66
"""Exit codes of `job end`, after which the same nodes begin another attempt, and of `job begin` where the run had ended
before Slurm started its job again."""


@dataclass(frozen=True)
class Job:
    """One job; paths are absolute, and the same on every node. `runs`: the run folder of each element."""

    name: str
    slurm: SlurmConfig
    runs: tuple[str, ...]
    array: Array | None
    package: str
    """Folder that holds the nexa_dist package, named by its hash."""
    python: str
    agent: str
    output: str
    """File of what the script prints."""
    exported: tuple[str, ...] = ()
    """Names of the variables that the job gets of the submitter's environment."""


def script(job: Job) -> str:
    """Text of the batch script."""
    lines = []
    if job.array:
        runs = " ".join(f"[{index}]={shlex.quote(run)}" for index, run in zip(job.array.indices, job.runs, strict=True))
        lines += [f"runs=({runs})", "run=${runs[$SLURM_ARRAY_TASK_ID]}"]
    else:
        lines += [f"run={shlex.quote(job.runs[0])}"]
    lines += [*set_variables(python=job.python, agent=job.agent), f"export PYTHONPATH={shlex.quote(job.package)}"]
    return batch(options(job), job.slurm, lines, BODY)


def batch(options: Sequence[str], slurm: SlurmConfig, lines: Sequence[str], body: str) -> str:
    """Text of a batch script: what sbatch and the user want, then ours."""
    head = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "set -u", *slurm.shell]
    return "\n".join([*head, *lines, body])


def set_variables(**values: str) -> list[str]:
    """Lines of a shell that set variables."""
    return [f"{name}={shlex.quote(value)}" for name, value in values.items()]


def options(job: Job) -> list[str]:
    """Options of sbatch, one a line of the script."""
    mine = [*([f"--array={job.array.text}"] if job.array else []), "--requeue"]
    return asked(job.name, job.slurm, mine, job.output, job.exported)


def asked(name: str, slurm: SlurmConfig, mine: Sequence[str], output: str, exported: Sequence[str]) -> list[str]:
    """Options of any job of ours: where its script prints to, and which variables of the submitter it gets; `mine` are
    those that not every job has."""
    printed = ["--open-mode=append", f"--output={output}", f"--export={','.join(exported) or 'NIL'}"]
    signal = f"--signal=B:TERM@{slurm.notice_s}"
    return [f"--job-name={name}", *resources(slurm), *mine, signal, *printed, *slurm.options]


def resources(slurm: SlurmConfig) -> list[str]:
    """Options for what is asked for, with one task a node."""
    asked: list[tuple[str, object]] = [
        ("partition", slurm.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
        ("constraint", slurm.constraint),
        ("exclude", slurm.exclude),
        ("gres", slurm.gres),
        ("cpus-per-task", slurm.cpus_per_node),
        ("mem", slurm.mem),
        ("time", slurm.time),
    ]
    return [
        f"--nodes={slurm.nodes}",
        "--ntasks-per-node=1",
        *(f"--{name}={value}" for name, value in asked if value is not None),
        *(["--exclusive"] if slurm.exclusive else []),
    ]


BODY = f"""\
unset SLURM_EXPORT_ENV # what the job has, its step gets too
noticed=0 step=
job() {{ "$python" -m nexa_dist.ops.slurm.job "$@"; }}
# Before the time limit Slurm signals this shell alone: the step gets the signal by it, and its ranks save and end. Of a
# job that is being ended everything has the signal already, and scancel would try for a minute and a half.
# shellcheck disable=SC2317 # the trap calls it
notice() {{
    noticed=1
    case "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" in
    RUNNING | SIGNALING) [ -z "$step" ] || timeout 10 scancel --signal=TERM "$SLURM_JOB_ID" ;;
    esac
}}
trap notice TERM

# begin: the nodes are looked at, the newest whole checkpoint is found, each node's command is written.
while :; do
    code=0
    job begin "$run" || code=$?
    [ "$code" != {OVER} ] || exit 0
    [ "$code" = 0 ] || exit "$code"
    # One agent a node, and below it one torchrun: it keeps the log of every rank, and ends all that it started.
    srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 "$python" -S -E "$agent" hold "$run/slurm/attempt" &
    step=$!
    wait "$step"
    while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends a wait, not the step
    step=
    # end: what came of it is written down; {AGAIN} is another attempt on these nodes.
    code=0
    job end "$run" "$noticed" || code=$?
    [ "$code" = {AGAIN} ] || exit "$code"
done
"""
