"""Which size of model is trained how: the scaling matrix, enforced. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nexa_dist.config.backends import BACKENDS
from nexa_dist.plan.fit.method import Method
from nexa_dist.plan.fit.model_shape import ModelShape

MOST_REPLICATED = BACKENDS["hf"].most_parameters or 0
"""Parameters that DDP trains whole."""
MOST_WHOLE = 60_000_000_000
"""Beyond it adapters alone are trained."""


@dataclass(frozen=True)
class Tier:
    """Models of up to `most` parameters. `methods` are names of METHODS that are looked at, the usual one first."""

    most: float
    title: str
    methods: tuple[str, ...]


TIERS = (
    Tier(MOST_REPLICATED, "hf under DDP", ("hf", "acc", "ds", "ax", "ax-qlora")),
    Tier(35e9, "Axolotl with an adapter, or all of it sharded", ("ax", "ax-qlora", "ax-fsdp", "acc", "ds", "ds-cpu")),
    Tier(MOST_WHOLE, "FSDP2 or ZeRO-3", ("acc", "ds", "ds-cpu", "ax-fsdp", "ax-qlora")),
    Tier(float("inf"), "adapters only", ("ax-qlora", "ax-fsdp", "ax")),
)
"""13 B and less on hf, 20 to 30 B on Axolotl, 40 to 60 B on FSDP or ZeRO-3; what lies between goes with the smaller."""


def tier_of(shape: ModelShape) -> Tier:
    return next(tier for tier in TIERS if shape.parameters <= tier.most)


def refusal(shape: ModelShape, method: Method) -> str:
    """Why the matrix refuses it, however much memory there is; empty when it does not."""
    count = shape.parameters
    size = f"the model has {count / 1e9:.1f} B parameters"
    row = BACKENDS.get(method.backend)
    most = row.most_parameters if row else None
    if most and count > most:
        return f"{size}, backend {method.backend} takes at most {most / 1e9:.0f} B: DDP holds all of it on every rank"
    if method.adapter is None and method.sharding == "ddp" and count > MOST_REPLICATED:
        return f"{size}, and DDP, which holds all of it on every rank, takes at most {MOST_REPLICATED / 1e9:.0f} B"
    if method.adapter is None and count > MOST_WHOLE:
        return f"{size}, and beyond {MOST_WHOLE / 1e9:.0f} B only adapters are trained"
    return ""
