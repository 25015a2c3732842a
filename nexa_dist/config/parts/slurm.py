"""The section `slurm:`: what `nexa slurm submit` asks of Slurm for a training, and provider slurm for a cluster."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from nexa_dist.config.trainer import Section

TIME = re.compile(r"(?:([0-9]{1,3})-)?([0-9]{1,4})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?")
GPUS = re.compile(r"(?:^|,)gpu(?::[A-Za-z][\w.-]*)?(?::([0-9]{1,3}))?(?=\(|,|$)")
OURS = ("array", "export", "job-name", "kill-on-bad-exit", "nodes", "no-requeue", "ntasks", "ntasks-per-node",
        "open-mode", "output", "requeue", "signal", "wrap")  # fmt: skip
"""Options of sbatch that the job depends on: they are set by it, or by keys of their own."""


def seconds_of(time: str) -> int:
    """Seconds of a time as Slurm writes it: MINUTES, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    found = TIME.fullmatch(time)
    if found is None:
        raise ValueError("expected a time as Slurm takes it: 90 (minutes), '12:00:00', 2-00 (days-hours)")
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[1] is not None:
        return days * 86400 + first * 3600 + second * 60 + third
    if found[3] is None:
        return first * 60
    return first * 3600 + second * 60 + third if found[4] is not None else first * 60 + second


def gpus_of(gres: str) -> int | None:
    """GPUs that generic resources ask for; None where they ask for none."""
    return sum(int(count or 1) for count in GPUS.findall(gres)) or None


def _time(value: str) -> str:
    if seconds_of(value) <= 0:
        raise ValueError("must be longer than nothing")
    return value


def _option(value: str) -> str:
    name = value.removeprefix("--").partition("=")[0]
    if name in OURS:
        raise ValueError(f"--{name} is set by nexa, which depends on it")
    return value


def _text(value: object) -> object:
    return str(value) if type(value) is int else value


Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9\[(][A-Za-z0-9_.,:=*&|()\[\]+-]{0,199}$")]
"""A value of an option of sbatch, which is one word without a quote, blank or dollar."""
Time = Annotated[str, BeforeValidator(_text), AfterValidator(_time)]
Option = Annotated[
    str, StringConstraints(pattern=r"^--[a-z][a-z-]{1,40}(=[A-Za-z0-9_.,:=*&|()\[\]@%/+-]{0,200})?$"),
    AfterValidator(_option),
]  # fmt: skip
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000, pattern=r"^[^\n\r]*$")]
Interpreter = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f]{1,1000}$")]


class SlurmConfig(Section):
    """What a job of Slurm asks for."""

    partition: Word | None = Field(None, description="Partition, or several by commas; without it, Slurm's default.")
    account: Word | None = Field(None, description="Account that pays for the job.")
    qos: Word | None = Field(None, description="Quality of service.")
    nodes: int = Field(1, ge=1, le=512, description="Nodes of the job; each gets one torchrun.")
    gres: Word | None = Field(
        None, description="Generic resources of each node, as sbatch takes them: gpu:4, gpu:h100:8. Their GPUs are the "
        "ranks of a node where nproc_per_node does not say it.",
    )  # fmt: skip
    constraint: Word | None = Field(None, description="Features that the nodes must have.")
    exclude: Word | None = Field(None, description="Nodes that the job is not to get.")
    cpus_per_node: int | None = Field(None, ge=1, le=1024, description="CPUs of each node for the job.")
    mem: Annotated[str, BeforeValidator(_text), StringConstraints(pattern=r"^[0-9]{1,9}[KMGT]?$")] | None = Field(
        None, description="Memory of each node as sbatch takes it: 64G; 0 is all of it."
    )
    exclusive: bool = Field(False, description="Nodes that no other job shares.")
    time: Time | None = Field(
        None, description="Time limit of the job: 90 (minutes), '12:00:00', 2-00 (days-hours). What does not end by it "
        "is saved, put into the queue again and goes on; max_hours of the training bounds all of them together.",
    )  # fmt: skip
    notice_s: int = Field(
        180, ge=30, le=3600, description="Seconds before the time limit at which the ranks are told to save and end."
    )
    python: Interpreter | None = Field(
        None, description="Interpreter with torch, by the same path on every node; without it, the one nexa runs with."
    )
    shell: tuple[Line, ...] = Field(
        (), max_length=50, description="Shell lines before anything else of the job: module load cuda."
    )
    options: tuple[Option, ...] = Field(
        (), max_length=30, description="More options of sbatch: [--mail-type=END, --reservation=r1]."
    )
    usd_per_gpu_hour: float = Field(
        0.0,
        ge=0.0,
        le=10_000.0,
        allow_inf_nan=False,
        description="Price of a GPU (a rank) for an hour, in US dollars: for what is shown before, and the manifest's "
        "cost_usd.",
    )

    @model_validator(mode="after")
    def _in_time(self) -> Self:
        if self.time is not None and seconds_of(self.time) <= self.notice_s + 60:
            raise ValueError(
                f"time: {self.time} leaves less than a minute before notice_s ({self.notice_s} s): raise time, or "
                "lower notice_s"
            )
        return self

    @property
    def gpus(self) -> int | None:
        """GPUs of each node that gres asks for; None where it asks for none."""
        return gpus_of(self.gres or "")

    @property
    def seconds(self) -> int | None:
        """Time limit in seconds; None where the partition's own holds."""
        return None if self.time is None else seconds_of(self.time)
