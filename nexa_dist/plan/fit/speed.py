"""How long a training takes: floating-point operations, and what a GPU does of them. Pure.

A token costs 6 operations a parameter that it goes through (2 forward, 2 for the gradient of what came in, 2 for that
of the weight) and 12 · layers · q · sequence in attention, q the width of all heads: Chowdhery et al. 2022 (PaLM),
appendix B. A frozen weight has no gradient, so LoRA spares a third; checkpointing is one more forward (Korthikanti et
al. 2022, arXiv 2205.05198). Of a GPU's dense peak a share is reached (MFU, here of all that is computed): stated,
not measured, since no GPU was there. What offloading waits for the host or a disk is not in it.
"""

from __future__ import annotations

from nexa_dist.plan.fit.method import Precision, Work
from nexa_dist.plan.fit.model_shape import ModelShape
from nexa_dist.plan.fit.resident import trainable

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


def flops_a_token(shape: ModelShape, work: Work) -> float:
    """Operations for one token, forward and backward, and forward once more with checkpointing; a teacher's forward."""
    table = shape.vocabulary * shape.hidden
    method = work.method
    through = shape.active - (0 if shape.tied else table)  # looking a token up costs none
    trained, added = through, 0
    if method.adapter:
        trained = added = sum(tensor.all for tensor in trainable(shape, method.adapter))
    forward = _forward(shape, work, added)
    again = forward - 2.0 * table if method.checkpointing else 0.0
    taught = _forward(work.teacher, work, 0) if work.teacher else 0.0
    return 3.0 * forward - 2.0 * (through + added - trained) + again + taught


def _forward(shape: ModelShape, work: Work, added: int) -> float:
    through = shape.active - (0 if shape.tied else shape.vocabulary * shape.hidden) + added
    return 2.0 * through + 4.0 * shape.layers * shape.heads * shape.head_width * work.sequence


def tokens_per_s(shape: ModelShape, work: Work, gpu: str) -> float | None:
    """Tokens a second of all ranks together; None for a GPU of unknown speed."""
    if gpu not in TFLOPS:
        return None
    peak = TFLOPS[gpu][work.precision == "bf16"] * 1e12
    return work.world_size * MFU[work.precision] * peak / flops_a_token(shape, work)
