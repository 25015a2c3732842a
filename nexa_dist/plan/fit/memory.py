"""The memory of one rank of backend hf, by part: weights in float32, AdamW, DDP, no checkpointing of activations.

What lives from step to step is exact, and held to real allocations by a test: 4 bytes a parameter of weights and of
gradients, 8 of AdamW's two moments, and 4 of DDP's buckets where there is more than one rank (DistributedDataParallel
copies gradients into them unless it is told not to). What a layer keeps for the backward pass was measured tensor by
tensor on Llama's layers (torch 2.13, transformers 5.23; `tests/processes/train/test_fits.py` measures it again); other
families keep about as much. A GPU's own overhead was not measured, since no GPU was there: it is stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nexa_dist.plan.fit.model_shape import ModelShape

Precision = Literal["fp32", "bf16"]
CONTEXT_BYTES = 1_200_000_000
"""Assumed for the CUDA context, cuBLAS's workspace and NCCL's buffers of one rank; not measured."""
FRAGMENTED = 0.05
"""Assumed share of the memory that no tensor can use, with expandable segments; not measured."""


@dataclass(frozen=True)
class Work:
    """What the ranks do in a step: `batch` windows of `sequence` tokens on each of `world_size` ranks."""

    precision: Precision
    world_size: int
    batch: int
    sequence: int

    @property
    def tokens(self) -> int:
        """Tokens a step on one rank."""
        return self.batch * self.sequence


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int
    optimizer: int
    buckets: int
    gradients: int
    activations: int
    """Kept for the backward pass; with bf16 also the weights in bf16."""
    logits: int
    """Of the loss: its kept part, and the two copies that the backward pass begins with."""

    @property
    def peak(self) -> int:
        """At the beginning of the backward pass, or at its end: gradients come as activations go."""
        steady = self.weights + self.optimizer + self.buckets
        return steady + max(self.activations + self.logits, self.gradients)

    @property
    def needed(self) -> int:
        """Memory that a GPU must have for it."""
        return round((self.peak + CONTEXT_BYTES) / (1 - FRAGMENTED))


def memory(shape: ModelShape, work: Work) -> Memory:
    """Bytes of one rank."""
    q, kv, h = shape.heads * shape.head_width, shape.kv_heads * shape.head_width, shape.hidden
    ffn = shape.ffn * shape.experts_a_token
    tensors = 4 if shape.traits.gated else 2
    low = work.precision == "bf16"
    if low:
        layer = 26 * h + 4 * q + 4 * kv + 2 * tensors * ffn + 4 * shape.heads + 8
        last = 10 * h
    else:
        layer = 4 * (6 * h + 2 * q + 2 * kv + tensors * ffn + shape.heads + 2)
        last = 12 * h
    cast = 2 * (shape.layers * (shape.attention + shape.experts * shape.expert) + shape.vocabulary * h) if low else 0
    count = shape.parameters
    return Memory(
        weights=4 * count,
        optimizer=8 * count,
        buckets=4 * count if work.world_size > 1 else 0,
        gradients=4 * count,
        activations=work.tokens * (shape.layers * layer + last) + cast,
        logits=12 * work.tokens * shape.vocabulary,
    )
