"""Slurm's own commands, and what they say."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from nexa_dist.errors import NexaError
from nexa_dist.run.runner import Result, Runner

TIMEOUT_S = 60.0
NO_PROGRAM = 127
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
NUMBER = re.compile(r"[0-9]{1,10}")
PREFIX = re.compile(r"^(sbatch|scontrol|scancel|squeue): (error: )?", re.MULTILINE)


class Unreachable(NexaError):
    """Slurm's programs are here, and no cluster of its: a laptop, or a login node before its slurm.conf is."""


@dataclass(frozen=True)
class Job:
    """One of our jobs as squeue tells it; `start` is expected, or real, and empty where Slurm does not say when."""

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


QUEUE = ("squeue", "--noheader", "--format=%i|%T|%S|%N|%k|%r")
"""squeue with the fields of a Job as columns."""


def jobs(result: Result) -> list[Job]:
    """Jobs of what QUEUE answers."""
    rows = [line.split("|", 5) for line in result.out.decode(errors="replace").splitlines() if line.count("|") >= 5]
    return [Job(number, state, start.replace("N/A", ""), *rest) for number, state, start, *rest in rows]


def fields(text: str) -> dict[str, str]:
    """Fields of one record of `scontrol --oneliner show`; a value with blanks in it is cut at the first."""
    return {name: value for word in text.split() for name, eq, value in [word.partition("=")] if eq}


@dataclass(frozen=True)
class Slurm:
    """Slurm's commands by one runner."""

    runner: Runner

    def submit(self, script: str, environment: Mapping[str, str] | None = None, *, test: bool = False) -> str:
        """Number of the job that sbatch made of a script; with `test` what sbatch says of when it would begin, and
        nothing is made. Raises NexaError with sbatch's own words."""
        words = ("--test-only",) if test else ("--parsable",)
        made = self._call(("sbatch", *words), "sbatch", stdin=script.encode(), env=environment)
        if test:
            return made.err.decode(errors="replace").strip()
        number = made.out.decode(errors="replace").strip().partition(";")[0]
        if not NUMBER.fullmatch(number):
            raise NexaError(f"sbatch answers {number[:100]!r}, which is no job", hint="squeue --me shows what there is")
        return number

    def begins(self, script: str, environment: Mapping[str, str] | None = None) -> str:
        """Words of Slurm for when the job would begin; where there is no Slurm, that."""
        if shutil.which("sbatch") is None:
            return "there is no sbatch here, so nobody was asked when it would begin"
        try:
            return self.submit(script, environment, test=True)
        except Unreachable as error:
            return f"{error}, so nobody was asked when it would begin"

    def named(self, name: str) -> list[Job]:
        """Our own jobs of this name that are not over. Raises NexaError when Slurm does not answer: that a job is gone
        is only said by an answer."""
        return jobs(self._call((*QUEUE, f"--user={os.geteuid()}", f"--name={name}"), "squeue"))

    def accounts(self, number: str, fields: str) -> Result:
        """Answer of sacct for a job, by its --format; its code is not 0 where no accounting is kept."""
        argv = ("sacct", f"--jobs={number}", "--noheader", "--parsable2", "--allocations", f"--format={fields}")
        return self.runner.run(argv, timeout_s=TIMEOUT_S)

    def waiting(self, number: str) -> Job | None:
        """The job (of an array, its first element) as it stands in the queue; None when it is in none. Raises NexaError
        when squeue cannot say: a job that nobody can see may go on."""
        argv = (*QUEUE, f"--jobs={number}")
        result = self.runner.run(argv, timeout_s=TIMEOUT_S)
        if result.code and b"Invalid job id" not in result.err:  # its word for a job that is long gone
            self._refused(result, argv, "squeue")
        return next(iter(jobs(result)), None)

    def job(self, number: str) -> dict[str, str]:
        """Fields of a job; empty when Slurm does not know it, or does not answer."""
        result = self.runner.run(("scontrol", "--oneliner", "show", "job", number), timeout_s=TIMEOUT_S)
        return {} if result.code else fields(result.out.decode(errors="replace").partition("\n")[0])

    def nodes(self, listed: str) -> list[str]:
        """Names of the nodes that Slurm writes as n[0-3,7]."""
        result = self._call(("scontrol", "show", "hostnames", listed), "scontrol show hostnames")
        names = result.out.decode(errors="replace").split()
        if not names or not all(HOST.fullmatch(name) for name in names):
            raise NexaError(f"scontrol makes no names of {listed[:100]!r}")
        return names

    def address(self, node: str) -> str:
        """Address at which other nodes reach this one."""
        result = self._call(("scontrol", "--oneliner", "show", "node", node), "scontrol show node")
        return fields(result.out.decode(errors="replace")).get("NodeAddr") or node

    def requeue(self, number: str) -> None:
        """Put a job of one's own back into the queue, which ends what it runs. Raises NexaError."""
        self._call(("scontrol", "requeue", number), "scontrol requeue")

    def cancel(self, number: str) -> None:
        """End a job. Raises NexaError."""
        self._call(("scancel", number), "scancel")

    def _call(
        self, argv: Sequence[str], what: str, *, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        result = self.runner.run(argv, stdin=stdin, timeout_s=TIMEOUT_S, env=env)
        if result.code:
            self._refused(result, argv, what)
        return result

    def _refused(self, result: Result, argv: Sequence[str], what: str) -> NoReturn:
        if result.code == NO_PROGRAM:
            raise NexaError(f"there is no {argv[0]} here", hint="call nexa on a login node of the Slurm cluster")
        if b"configuration source" in result.err:
            hint = "call nexa on a login node of the Slurm cluster; SLURM_CONF names another slurm.conf"
            raise Unreachable(f"{argv[0]} finds no slurm.conf here", hint=hint)
        said = PREFIX.sub("", result.tail(3))
        raise NexaError(f"{what}: {said}", hint=_hint(said))


def _hint(said: str) -> str:
    """What to do about a refusal of Slurm's, where that is known."""
    words = said.lower()
    for mark, cure in (
        ("account", "slurm.account is not one of yours for this partition: sacctmgr show associations user=$USER"),
        ("partition", "slurm.partition: sinfo lists the partitions"),
        ("qos", "slurm.qos: sacctmgr show qos lists them"),
        ("node configuration", "no node of the partition has that: sinfo -N -o '%N %G %c %m %f' shows what they have"),
        ("time limit", "slurm.time: sinfo -o '%P %l' shows the longest of each partition"),
        ("contact", "is slurmctld up? scontrol ping"),
    ):
        if mark in words:
            return cure
    return ""
