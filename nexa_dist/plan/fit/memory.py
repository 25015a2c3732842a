"""The memory of one rank, by part, and what lies in its node's memory and on its disks instead.

What lives from step to step is exact (resident.py), what the layers keep is measured (activations.py). What is gathered
from other ranks for a while follows from reading FSDP2 and DeepSpeed, and a GPU's own overhead is assumed: no GPU was
there to measure either.
"""

from __future__ import annotations

from dataclasses import dataclass

from nexa_dist.plan.fit import activations
from nexa_dist.plan.fit.method import Work
from nexa_dist.plan.fit.model_shape import ModelShape, Tensor
from nexa_dist.plan.fit.resident import Resident, resident, trainable, width_of, width_trained

CONTEXT_BYTES = 1_200_000_000
"""Assumed for the CUDA context, cuBLAS's workspace and NCCL's buffers of one rank; not measured."""
FRAGMENTED = 0.05
"""Assumed share of the memory that no tensor can use, with expandable segments; not measured."""
LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance, in elements."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int
    optimizer: int
    buckets: int
    """Copies of gradients on their way to other ranks."""
    gradients: int
    gathered: int
    """Weights of a few layers, and their gradients, that other ranks keep; or one matrix out of its 4 bits."""
    activations: int
    """Kept for the backward pass."""
    casts: int
    """Weights in bf16 that autocast makes beside those in float32."""
    recomputed: int
    """With checkpointing: one layer's, for its backward pass."""
    logits: int
    """Of the loss: its kept part, and the two copies that the backward pass begins with."""
    host: int
    """In the node's memory and not on the GPU."""
    nvme: int
    """On the node's disk and not on the GPU."""
    teacher: int = 0
    """Its weights, and of the loss in its logits what is kept and what the backward pass begins with."""
    kv_cache: int = 0
    """Evaluation here computes a loss and generates nothing, so there is none."""

    @property
    def peak(self) -> int:
        """At the beginning of the backward pass, or at its end: gradients come as activations go."""
        steady = self.weights + self.optimizer + self.buckets + self.gathered + self.teacher
        begin = self.activations + max(self.casts + self.logits, self.recomputed)
        return steady + max(begin, self.gradients + self.recomputed)

    @property
    def fragmented(self) -> int:
        return self.needed - self.peak - CONTEXT_BYTES

    @property
    def needed(self) -> int:
        """Memory that a GPU must have for it."""
        return round((self.peak + CONTEXT_BYTES) / (1 - FRAGMENTED))


def memory(shape: ModelShape, work: Work) -> Memory:
    """Bytes of one rank."""
    method, held = work.method, resident(shape, work)
    moved = {"": 0, "cpu": 0, "nvme": 0}
    moved[method.weights_at] += held.weights
    # DeepSpeed and FSDP2 put the gradients where the optimizer is, DeepSpeed in float32.
    of_step = held.gradients if method.sharding == "fsdp2" else 4 * held.partition
    moved[method.optimizer_at] += held.optimizer + (of_step if method.optimizer_at else 0)
    return Memory(
        weights=0 if method.weights_at else held.weights,
        optimizer=0 if method.optimizer_at else held.optimizer,
        buckets=_buckets(shape, work, held),
        gradients=0 if method.optimizer_at else held.gradients,
        gathered=_gathered(shape, work),
        activations=activations.kept(shape, work),
        casts=activations.casts(shape, work),
        recomputed=activations.again(shape, work),
        logits=activations.logits(shape, work),
        host=moved["cpu"],
        nvme=moved["nvme"],
        teacher=_teacher(work),
    )


def _teacher(work: Work) -> int:
    if work.teacher is None:
        return 0
    width = 2 if work.precision == "bf16" else 4
    # In float32 log-probabilities of both are kept, and a gradient of each kind made of them (train/kd/loss.py).
    return width * work.teacher.parameters + 16 * work.tokens * work.teacher.vocabulary


def _buckets(shape: ModelShape, work: Work, held: Resident) -> int:
    method, width = work.method, width_trained(work.method)
    if work.world_size == 1 or method.sharding == "fsdp2":
        return 0
    if method.sharding == "ddp":
        return width * held.trained  # DistributedDataParallel copies gradients unless it is told not to
    size = shape.hidden**2 if method.buckets.reduce is None else method.buckets.reduce
    return width * size * (2 if method.buckets.overlap and method.sharding != "zero3" else 1)


def _gathered(shape: ModelShape, work: Work) -> int:
    """Elements of the layers in flight, times their width."""
    method = work.method
    largest = max(t.numel for t in shape.tensors if t.kind != "table")
    unpacked = 2 * largest if method.weights == "nf4" else 0
    if method.sharding not in ("fsdp2", "zero3"):
        return unpacked
    width = 2 if work.precision == "bf16" else width_of(method)
    if method.sharding == "fsdp2":
        # This layer and the next one, which is fetched meanwhile; what is in no layer stays from the forward pass on.
        frozen = shape.tensors if method.adapter else ()
        trained = trainable(shape, method.adapter)
        deep = shape.layers if method.keeps_gathered else 2
        weights = sum(_outside(of) + deep * _a_layer(of, shape) for of in (frozen, trained))
        return width * (weights + _outside(trained) + 2 * _a_layer(trained, shape)) + unpacked
    asked = method.buckets
    prefetch = round(0.9 * shape.hidden**2) if asked.prefetch is None else asked.prefetch
    most = 10 * shape.hidden if asked.keep_whole_below is None else asked.keep_whole_below
    small = sum(t.all for t in shape.tensors if t.numel <= most)
    return width * (min(LIVE, shape.parameters) + prefetch + small) + unpacked


def _outside(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.all for tensor in tensors if tensor.outside)


def _a_layer(tensors: tuple[Tensor, ...], shape: ModelShape) -> int:
    return sum(tensor.all for tensor in tensors if not tensor.outside) // shape.layers
