"""Whether a training fits a cluster, how long it takes there, and the cheapest nodes that it would fit. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from nexa_dist.plan.aws import prices
from nexa_dist.plan.aws.prices import GpuType
from nexa_dist.plan.fit.memory import Memory, memory
from nexa_dist.plan.fit.method import METHODS, Work, as_if
from nexa_dist.plan.fit.model_shape import ModelShape
from nexa_dist.plan.fit.speed import tokens_per_s
from nexa_dist.plan.fit.tiers import refusal, tier_of

GIB = 1 << 30
HOST_SHARE = 0.8
"""Of a node's memory what is offloaded may take; the rest is for the processes and the page cache. Assumed."""
MOST_NODES = 16
"""Of one type that are looked at."""


@dataclass(frozen=True)
class Fit:
    """A training on nodes of one type. `hours` and `usd` are None where the GPU's speed or the price is unknown."""

    type: GpuType
    nodes: int
    fits: bool
    work: Work
    memory: Memory
    tokens_per_s: float | None
    hours: float | None
    usd: float | None

    @property
    def world_size(self) -> int:
        return self.work.world_size

    def to_json(self) -> dict[str, Any]:
        """Bytes, hours and US dollars."""
        made = self.memory
        more = {"peak": made.peak, "needed": made.needed, "fragmented": made.fragmented}
        return {
            "type": self.type.name, "gpu": self.type.gpu, "gpu_memory_gib": self.type.gpu_memory_gib,
            "nodes": self.nodes, "world_size": self.world_size, "fits": self.fits,
            "method": self.work.method.title, "memory_bytes": {**asdict(made), **more},
            "tokens_per_s": self.tokens_per_s, "hours": self.hours, "usd": self.usd,
        }  # fmt: skip


def on(kind: GpuType, nodes: int, shape: ModelShape, work: Work, tokens: float, usd_per_hour: float | None) -> Fit:
    """The training on so many nodes of a type, one rank a GPU. `tokens`: of the whole training, over all ranks;
    `usd_per_hour` is of one node."""
    work = replace(work, world_size=nodes * kind.gpus)
    made = memory(shape, work)
    speed = tokens_per_s(shape, work, kind.gpu)
    hours = tokens / speed / 3600 if speed else None
    usd = hours * nodes * usd_per_hour if hours is not None and usd_per_hour is not None else None
    return Fit(kind, nodes, not refusal(shape, work.method) and room(kind, made) == "", work, made, speed, hours, usd)


def room(kind: GpuType, made: Memory) -> str:
    """What lacks room on a node of this type; empty when all has."""
    if made.needed > kind.gpu_memory_gib * GIB:
        return (
            f"a rank needs {made.needed / GIB:.1f} GiB, and one {kind.gpu} of {kind.name} "
            f"has {kind.gpu_memory_gib:g} GiB"
        )
    if made.host * kind.gpus > HOST_SHARE * kind.memory_gib * GIB:
        return (
            f"what is offloaded takes {made.host * kind.gpus / GIB:.0f} GiB of a node's memory, and {kind.name} has "
            f"{kind.memory_gib:g} GiB, of which {HOST_SHARE:.0%} may be taken"
        )
    return ""


def smallest(shape: ModelShape, work: Work, tokens: float, region: str) -> list[Fit]:
    """Of each type in the price book the fewest nodes that it fits, on demand, cheapest for these tokens first. The
    batch of a rank stays, so more ranks need fewer steps for them."""
    found = []
    for kind in prices.book().types.values():
        usd = kind.on_demand_usd_per_hour.get(region)
        alone = work.method.sharding == "ddp"  # more nodes leave a rank as much
        if usd is not None and not refusal(shape, work.method):
            tried = (on(kind, nodes, shape, work, tokens, usd) for nodes in range(1, 2 if alone else MOST_NODES + 1))
            found += [fit for fit in [next((fit for fit in tried if fit.fits), None)] if fit and fit.usd is not None]
    return sorted(found, key=lambda fit: fit.usd or 0.0)


def instead(shape: ModelShape, work: Work, tokens: float, region: str) -> list[Fit]:
    """The cheapest cluster for each other method that a model of this size is trained by, cheapest first."""
    found = []
    for name in tier_of(shape).methods:
        if METHODS[name] != work.method:
            found += smallest(shape, as_if(work, METHODS[name]), tokens, region)[:1]
    return sorted(found, key=lambda fit: fit.usd or 0.0)
