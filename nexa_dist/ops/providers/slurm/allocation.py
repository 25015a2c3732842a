"""The allocation of a cluster: what was asked for is written down before Slurm is asked, and found again by name.

A crash between sbatch and its recorded answer leaves a token: the job that carries it is the cluster's. One that comes
later than the look for it finds another token in the cluster's folder, and gives its nodes back at once.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.ops import ledger_file
from nexa_dist.ops.context import Context
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.slurm.allocation import ended_unix, name_of
from nexa_dist.run import files
from nexa_dist.run.slurm.commands import Job, Slurm
from nexa_dist.run.workspace import ClusterFolder, loaded

RECORD = "slurm.json"
GONE_S, LOOK_S = 180.0, 1.0
"""Seconds for jobs that were cancelled to leave the queue, KillWait among them; and between two looks."""


@dataclass(frozen=True)
class Record:
    """`slurm.json`: the newest submission. `job` is empty while nobody has heard sbatch's answer; `ours`: it was we who
    ended it; `asked` names what it asks for."""

    token: str = ""
    asked: str = ""
    job: str = ""
    ours: bool = False
    created_unix: float = 0.0

    @classmethod
    def of(cls, folder: ClusterFolder) -> Self:
        """The record, empty if there is none. Raises NexaError when it is damaged."""
        path = folder.path / RECORD
        return loaded(path, cls, "nexa teardown does without it") if path.exists() else cls()

    def save(self, folder: ClusterFolder) -> None:
        files.write_json(folder.path / RECORD, asdict(self))


@dataclass(frozen=True)
class Allocation:
    """What Slurm has of one cluster."""

    ctx: Context
    folder: ClusterFolder

    @property
    def slurm(self) -> Slurm:
        return Slurm(self.ctx.runner)

    @property
    def name(self) -> str:
        return name_of(self.folder.name, our_tag(self.ctx))

    @property
    def current(self) -> Path:
        """File with the token of the one job that may hold nodes."""
        return self.folder.path / "slurm" / "current"

    def place(self, token: str) -> Path:
        """Folder of one submission."""
        return self.folder.path / "slurm" / token

    def jobs(self) -> list[Job]:
        """Every job of the cluster's that is not over. Raises NexaError when Slurm does not answer."""
        return self.slurm.named(self.name)

    def job(self, number: str) -> Job | None:
        """The job of this number; None when it is over."""
        return next((one for one in self.jobs() if one.number == number), None)

    def found(self) -> Job | None:
        """The job of the record, with its number written down now; those of other submissions are cancelled."""
        record, mine = Record.of(self.folder), None
        for job in self.jobs():
            if job.number == record.job or (not record.job and record.token and job.comment == record.token):
                mine = job
            else:
                self.ctx.detail(f"job {job.number} of an earlier submission is cancelled")
                self.slurm.cancel(job.number)
        if mine and not record.job:
            self.ctx.say(f"job {mine.number} was submitted before: going on with it")
            replace(record, job=mine.number).save(self.folder)
        return mine

    def fresh(self, asked: str) -> Record:
        """Another submission, written down before it is made."""
        record = Record(secrets.token_hex(8), asked, created_unix=self.ctx.now())
        record.save(self.folder)
        files.write_text(self.current, record.token + "\n")
        return record

    def end(self) -> list[str]:
        """Cancel all jobs of the cluster, and wait until Slurm has none of them in its queue. Answers their numbers.
        Raises StillRunning when it does not let go of them in time."""
        with contextlib.suppress(NexaError):  # a damaged record: the jobs are found by their name
            replace(Record.of(self.folder), ours=True).save(self.folder)
        if self.current.parent.exists():
            files.write_text(self.current, "\n")
        ended: dict[str, None] = {}
        until = self.ctx.now() + GONE_S
        while left := self.jobs():
            for job in left:
                if job.number not in ended and job.state != "COMPLETING":  # for such a one scancel tries for 95 s
                    self.slurm.cancel(job.number)
                ended[job.number] = None
            if self.ctx.now() > until:
                told = "; ".join(f"job {job.number} is {job.state} on {job.nodes or 'no node'}" for job in left)
                raise StillRunning(
                    f"not proven gone after {GONE_S:.0f} s: {told}", hint=f"squeue --name={self.name} shows why"
                )
            self.ctx.sleep(LOOK_S)
        return list(ended)

    def told(self, number: str) -> dict[str, str]:
        """Fields of a job that may be over; empty once Slurm has forgotten it (MinJobAge)."""
        return self.slurm.job(number) if number else {}

    def close_periods(self) -> None:
        """End in the ledger what is on no more: the nodes of a job that has left the queue, at its end."""
        periods = ledger_file.open_periods(self.folder)
        record = Record.of(self.folder)
        if not periods or not record.job or self.job(record.job):
            return
        now, job = self.ctx.now(), self.told(record.job)
        why = f"job {record.job} is {job.get('JobState', 'gone')}"
        for period in periods:
            at = ended_unix(job) or now
            ledger_file.stop(self.folder, period, min(max(at, period.start_unix), now), why, "clock")


def tail_of(path: Path) -> str:
    """The last lines that a batch script printed, for an error."""
    text = files.tail(path, 4096).decode(errors="replace") if path.exists() else ""
    return " | ".join(text.strip().splitlines()[-5:])
