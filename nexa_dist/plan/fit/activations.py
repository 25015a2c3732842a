"""What a layer keeps for the backward pass, in bytes a token, and what the loss takes.

Measured tensor by tensor on Llama's layers (torch 2.13, transformers 5.23, scaled dot product attention, which keeps no
matrix of scores); tests/processes/train/test_fits.py measures it again, with and without checkpointing, and with LoRA.
Other families keep about as much. With checkpointing a layer keeps its input alone and is computed once more:
Korthikanti et al. 2022, arXiv 2205.05198, section 5 (2sbh bytes a layer in 16 bits).
"""

from __future__ import annotations

from nexa_dist.plan.fit.method import ALL_LINEAR, Adapter, Work
from nexa_dist.plan.fit.model_shape import ModelShape
from nexa_dist.plan.fit.resident import width_of


def layer(shape: ModelShape, work: Work) -> int:
    """Bytes a token that one layer keeps."""
    q, kv, h = shape.heads * shape.head_width, shape.kv_heads * shape.head_width, shape.hidden
    ffn, tensors = shape.ffn * shape.experts_a_token, 4 if shape.traits.gated else 2
    adapter, traits = work.method.adapter, shape.traits
    if adapter:
        read = [_chosen(adapter, names) for names in (traits.attention[:3], traits.feed_forward[:-1])]
        tensors -= 0 if _chosen(adapter, traits.feed_forward[-1:]) else 1
        inputs = sum(1 for modules in read if modules)
    if work.precision == "fp32":
        # A frozen norm keeps what came in; what went out is kept for the adapters that read it.
        norms = 2 * h + inputs * h if adapter else 6 * h
        return 4 * (norms + 2 * q + 2 * kv + tensors * ffn + shape.heads + 2)
    inner = 2 * (2 * q + 2 * kv + tensors * ffn) + 4 * shape.heads + 8
    if adapter:
        return inner + 8 * h + 2 * h * sum(map(sum, read))
    return inner + (16 if width_of(work.method) == 2 else 26) * h  # autocast: five matrices copy their input each


def kept(shape: ModelShape, work: Work) -> int:
    """Bytes of all layers at the beginning of the backward pass."""
    a_layer = stream(work) * shape.hidden if work.method.checkpointing else layer(shape, work)
    last = (10 if work.precision == "bf16" else 12) * shape.hidden
    return work.tokens * (shape.layers * a_layer + last)


def again(shape: ModelShape, work: Work) -> int:
    """With checkpointing: bytes of one layer, its casts and the gradients on their way through it."""
    if not work.method.checkpointing:
        return 0
    width = 4 if work.precision == "fp32" else 2
    through = width * 2 * (shape.ffn * shape.experts_a_token + shape.hidden)
    return work.tokens * (layer(shape, work) + through) + (_cast_bytes(shape, 1) if _autocast(work) else 0)


def stream(work: Work) -> int:
    """Bytes of a feature between two layers."""
    return 2 if work.precision == "bf16" and width_of(work.method) == 2 else 4


def logits(shape: ModelShape, work: Work) -> int:
    """Of the loss: its kept part, and the two copies that the backward pass begins with."""
    return 12 * work.tokens * shape.vocabulary


def casts(shape: ModelShape, work: Work) -> int:
    """Weights that autocast keeps in bf16 beside those in float32, until the loss is there or (without checkpointing)
    the backward pass has gone by. Under FSDP2 and DeepSpeed it is the gathered ones that are bf16."""
    if not _autocast(work):
        return 0
    if work.method.adapter and work.method.checkpointing:  # frozen ones are kept for the backward pass alone
        return 0
    return _cast_bytes(shape, shape.layers) + 2 * shape.vocabulary * shape.hidden


def _autocast(work: Work) -> bool:
    return work.precision == "bf16" and work.method.sharding == "ddp" and work.method.weights == "fp32"


def _cast_bytes(shape: ModelShape, layers: int) -> int:
    return 2 * layers * sum(t.numel for t in shape.tensors if t.kind in ("linear", "experts", "router"))


def _chosen(adapter: Adapter, names: tuple[str, ...]) -> list[int]:
    """A 1 for each module of these that the adapter goes to."""
    return [1 for name in dict.fromkeys(names) if adapter.targets == ALL_LINEAR or name in adapter.targets]
