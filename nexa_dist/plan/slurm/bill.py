"""What a job may cost at most: its ranks for all of its time limit."""

from __future__ import annotations

from dataclasses import dataclass

from nexa_dist.config.parts.slurm import SlurmConfig


@dataclass(frozen=True)
class Bill:
    """`gpus`: ranks of one element. Hours and USD are of all elements together, at their time limit; None where no
    limit is known. A job that is put into the queue again counts anew."""

    elements: int
    gpus: int
    gpu_hours: float | None
    usd: float | None

    @property
    def words(self) -> str:
        """One line for people."""
        of = f"{self.elements} × {self.gpus}" if self.elements > 1 else str(self.gpus)
        if self.gpu_hours is None:
            return f"{of} ranks for as long as the partition allows: set slurm.time for GPU-hours and USD"
        price = f", {self.usd:.2f} USD" if self.usd is not None else "; slurm.usd_per_gpu_hour says what that costs"
        return f"{of} ranks for at most {self.gpu_hours:.2f} GPU-hours{price}"


def bill(slurm: SlurmConfig, nproc: int, elements: int) -> Bill:
    """`nproc`: ranks of each node."""
    gpus = slurm.nodes * nproc
    hours = None if slurm.seconds is None else elements * gpus * slurm.seconds / 3600
    priced = hours is not None and slurm.usd_per_gpu_hour > 0
    return Bill(elements, gpus, hours, hours * slurm.usd_per_gpu_hour if hours is not None and priced else None)
