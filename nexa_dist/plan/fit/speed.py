"""How long a training takes: floating-point operations, and what a GPU does of them. Pure.

A token costs 6 operations a parameter that it goes through (2 forward, 4 backward) and 12 · layers · q · sequence in
attention, q the width of all heads: Chowdhery et al. 2022 (PaLM), appendix B. Of a GPU's dense peak a share is reached
(model FLOPs utilization, MFU): stated here, not measured, since no GPU was there.
"""

from __future__ import annotations

from nexa_dist.plan.fit.memory import Precision, Work
from nexa_dist.plan.fit.model_shape import ModelShape

TFLOPS: dict[str, tuple[float, float]] = {
    "T4": (8.1, 65.0),
    "A10G": (31.2, 70.0),
    "L4": (30.3, 121.0),
    "L40S": (91.6, 362.0),
    "A100": (19.5, 312.0),
    "H100": (67.0, 989.0),
    "H200": (67.0, 989.0),
}
"""Dense peak by GPU as NVIDIA's data sheets give it, in 10^12 operations a second: float32 without TF32, which torch
leaves off, and bf16 (T4: fp16, it has no bf16 units). Of others no figure is at hand here."""
MFU: dict[Precision, float] = {"fp32": 0.5, "bf16": 0.35}


def flops_a_token(shape: ModelShape, sequence: int) -> float:
    """Operations for one token, forward and backward."""
    table = shape.vocabulary * shape.hidden
    through = shape.active - (0 if shape.tied else table)  # looking a token up costs none
    return 6.0 * through + 12.0 * shape.layers * shape.heads * shape.head_width * sequence


def tokens_per_s(shape: ModelShape, work: Work, gpu: str) -> float | None:
    """Tokens a second of all ranks together; None for a GPU of unknown speed."""
    if gpu not in TFLOPS:
        return None
    peak = TFLOPS[gpu][work.precision == "bf16"] * 1e12
    return work.world_size * MFU[work.precision] * peak / flops_a_token(shape, work.sequence)
