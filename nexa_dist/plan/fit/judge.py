"""Whether a training fits a cluster, how long it takes there, and the cheapest nodes that it would fit. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from nexa_dist.config.backends import BACKENDS
from nexa_dist.plan.aws import prices
from nexa_dist.plan.aws.prices import GpuType
from nexa_dist.plan.fit.memory import Memory, Work, memory
from nexa_dist.plan.fit.model_shape import ModelShape
from nexa_dist.plan.fit.speed import tokens_per_s

GIB = 1 << 30
MOST_PARAMETERS = BACKENDS["hf"].most_parameters or 0


@dataclass(frozen=True)
class Fit:
    """A training on nodes of one type. `hours` and `usd` are None where the GPU's speed or the price is unknown."""

    type: GpuType
    nodes: int
    fits: bool
    world_size: int
    memory: Memory
    tokens_per_s: float | None
    hours: float | None
    usd: float | None

    def to_json(self) -> dict[str, Any]:
        """Bytes, hours and US dollars."""
        return {
            "type": self.type.name, "gpu": self.type.gpu, "gpu_memory_gib": self.type.gpu_memory_gib,
            "nodes": self.nodes, "world_size": self.world_size, "fits": self.fits,
            "memory_bytes": {**asdict(self.memory), "peak": self.memory.peak, "needed": self.memory.needed},
            "tokens_per_s": self.tokens_per_s, "hours": self.hours, "usd": self.usd,
        }  # fmt: skip


def on(kind: GpuType, nodes: int, shape: ModelShape, work: Work, steps: int, usd_per_hour: float | None) -> Fit:
    """The training on so many nodes of a type, one rank a GPU; `usd_per_hour` is of one node."""
    work = replace(work, world_size=nodes * kind.gpus)
    made = memory(shape, work)
    speed = tokens_per_s(shape, work, kind.gpu)
    hours = steps * work.tokens * work.world_size / speed / 3600 if speed else None
    usd = hours * nodes * usd_per_hour if hours is not None and usd_per_hour is not None else None
    fits = shape.parameters <= MOST_PARAMETERS and made.needed <= kind.gpu_memory_gib * GIB
    return Fit(kind, nodes, fits, work.world_size, made, speed, hours, usd)


def cheapest(shape: ModelShape, work: Work, steps: int, region: str, most: int = 3) -> list[Fit]:
    """One node of each type in the price book that it fits, on demand, cheapest for the whole training first. The
    batch of a rank stays, so more ranks do the same steps with more tokens in about the same time."""
    fits = [
        on(kind, 1, shape, work, steps, kind.on_demand_usd_per_hour[region])
        for kind in prices.book().types.values()
        if region in kind.on_demand_usd_per_hour
    ]
    priced = [fit for fit in fits if fit.fits and fit.usd is not None]
    # As many tokens on each: an eight-GPU node does eight times as many a step.
    return sorted(priced, key=lambda fit: (fit.usd or 0.0) / fit.world_size)[:most]
