"""What of a training lies in a rank's memory from step to step: weights, gradients, optimizer. Exact, in bytes.

- DDP: all of it on every rank; AdamW has two moments of a parameter's own width, DDP a copy of the gradients.
- FSDP2: torch cuts each parameter along its first dimension into equal parts, the last ones padded
  (`torch/distributed/fsdp/_fully_shard/_fsdp_param.py`).
- ZeRO 1, 2, 3: Rajbhandari et al. 2020, arXiv 1910.02054, section 5: 2Ψ of weights and of gradients in bf16 and 12Ψ of
  the optimizer (float32 weights and two moments) over N ranks. DeepSpeed 0.19 flattens the parameters that decay and
  those that do not, each padded to 2N elements (stages 1 and 2), or cuts each parameter, padded to N (stage 3). In
  stage 2 the gradient of a parameter that two ranks share stays whole on both: at most one parameter more, not counted.
- LoRA: A of rank × in and B of out × rank, in float32 as peft makes them (under DeepSpeed in the model's own numbers).
- QLoRA: Dettmers et al. 2023, arXiv 2305.14314, section 3: 4 bits a weight, a constant of 8 bits for each block of 64,
  and one of 32 bits for each 256 constants; beside them bitsandbytes keeps two tables and an offset for each matrix.
  What is no matrix of a layer is float32, as peft prepares it.

Each of them is held to real allocations by tests/processes/train/test_fits_sharded.py. AdamW's counters, 4 bytes for
each tensor, are left out: torch keeps them in the host's memory, unless the optimizer is a fused one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nexa_dist.errors import UsageError
from nexa_dist.plan.fit.method import ALL_LINEAR, Adapter, Method, Sharding, Work
from nexa_dist.plan.fit.model_shape import ModelShape, Tensor

NF4_BLOCK, NF4_NESTED = 64, 256
NF4_TABLES = 16 * 4 + 256 * 4 + 4
"""The values that 4 and 8 bits stand for, and the offset of the constants, in float32."""


@dataclass(frozen=True)
class Resident:
    """Bytes of one rank, wherever they lie; `trained` and `partition` are elements: all, and this rank's part."""

    weights: int
    gradients: int
    optimizer: int
    trained: int
    partition: int


def resident(shape: ModelShape, work: Work) -> Resident:
    """Of the rank that has most. Raises UsageError for an adapter that fits no module of the model."""
    method, ranks = work.method, work.world_size
    trained = trainable(shape, method.adapter)
    frozen = shape.tensors if method.adapter else ()
    width, own = width_of(method), width_trained(method)
    count = sum(tensor.all for tensor in trained)
    if method.sharding in ("zero1", "zero2"):
        whole = sum(_up(elements, 2 * ranks) for elements in _groups(trained))
        part = whole // ranks
        kept = own * whole + _bytes(frozen, method, width)
        return Resident(kept, own * (count if method.sharding == "zero1" else part), 12 * part, count, part)
    part = _part(trained, method.sharding, ranks)
    moments = 12 * part if method.sharding == "zero3" else 2 * own * part
    spread = sum(_local(t, method.sharding, ranks) * t.copies * width for t in frozen if not _quantized(t, method))
    spread += sum(-(-nf4_bytes(t.numel) // _over(method.sharding, ranks)) * t.copies
                  for t in frozen if _quantized(t, method))  # fmt: skip
    return Resident(own * part + spread, own * part, moments, count, part)


def trainable(shape: ModelShape, adapter: Adapter | None) -> tuple[Tensor, ...]:
    """All parameters, or those that the adapter adds."""
    if adapter is None:
        return shape.tensors
    linear = [tensor for tensor in shape.tensors if tensor.kind == "linear"]
    chosen = [t for t in linear if adapter.targets == ALL_LINEAR or t.name in adapter.targets]
    if not chosen:
        raise UsageError(
            f"LoRA has no module to go to: {', '.join(adapter.targets)} is none of a {shape.family}",
            hint=f"it has {', '.join(dict.fromkeys(tensor.name for tensor in linear))}",
        )
    return tuple(_adapters(shape, chosen, adapter.rank))


def _adapters(shape: ModelShape, chosen: Iterable[Tensor], rank: int) -> Iterator[Tensor]:
    for tensor in chosen:
        out, into = reversed(tensor.shape) if shape.traits.transposed else tensor.shape
        yield Tensor(f"{tensor.name}.A", (rank, into), tensor.copies, "linear")
        yield Tensor(f"{tensor.name}.B", (out, rank), tensor.copies, "linear")


def width_of(method: Method) -> int:
    """Bytes of a weight that is not quantized."""
    return 2 if method.weights == "bf16" or (_deepspeed(method) and method.weights != "fp32") else 4


def width_trained(method: Method) -> int:
    """Bytes of a weight that is trained."""
    return 4 if method.adapter and not _deepspeed(method) else width_of(method)


def nf4_bytes(elements: int) -> int:
    """Of one quantized matrix with doubly quantized constants."""
    blocks = -(-elements // NF4_BLOCK)
    return -(-elements // 2) + blocks + 4 * -(-blocks // NF4_NESTED) + NF4_TABLES


def _deepspeed(method: Method) -> bool:
    return method.sharding.startswith("zero")


def _quantized(tensor: Tensor, method: Method) -> bool:
    return method.weights == "nf4" and tensor.kind == "linear"


def _bytes(tensors: Iterable[Tensor], method: Method, width: int) -> int:
    return sum(t.copies * (nf4_bytes(t.numel) if _quantized(t, method) else width * t.numel) for t in tensors)


def _part(tensors: Iterable[Tensor], sharding: Sharding, ranks: int) -> int:
    return sum(_local(tensor, sharding, ranks) * tensor.copies for tensor in tensors)


def _local(tensor: Tensor, sharding: Sharding, ranks: int) -> int:
    """Elements of one tensor on one rank."""
    if sharding == "fsdp2":
        return -(-tensor.shape[0] // ranks) * math.prod(tensor.shape[1:])
    return -(-tensor.numel // _over(sharding, ranks))


def _over(sharding: Sharding, ranks: int) -> int:
    """Ranks over which weights are spread."""
    return ranks if sharding in ("fsdp2", "zero3") else 1


def _groups(tensors: Iterable[Tensor]) -> list[int]:
    """Elements that the Trainer lets decay, and those that it does not."""
    elements = [0, 0]
    for tensor in tensors:
        elements[tensor.kind == "vector"] += tensor.all
    return elements


def _up(elements: int, step: int) -> int:
    return -(-elements // step) * step
