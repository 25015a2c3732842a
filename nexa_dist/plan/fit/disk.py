"""What the checkpoints of a training take of a node's disk. Pure."""

from __future__ import annotations

from nexa_dist.plan.fit.method import Work
from nexa_dist.plan.fit.model_shape import ModelShape
from nexa_dist.plan.fit.resident import trainable, width_trained

SHARE = 0.8
"""Of a disk that they may take; the rest is the system's, the environments' and the data's. Assumed."""


def checkpoint_bytes(shape: ModelShape, work: Work) -> int:
    """One checkpoint, over all ranks: what is trained, and the optimizer's state of it (two moments; of DeepSpeed its
    float32 weights too)."""
    count = sum(tensor.all for tensor in trainable(shape, work.method.adapter))
    own = width_trained(work.method)
    return count * (own + (12 if work.method.sharding.startswith("zero") else 2 * own))


def on_a_node(shape: ModelShape, work: Work, nodes: int, keep: int) -> int:
    """Bytes on the fullest node: `keep` checkpoints and the one that is being written. DDP's are whole on one node; of
    sharded ones a node has its own part and a neighbour's."""
    one = checkpoint_bytes(shape, work)
    part = one if nodes == 1 or work.method.sharding == "ddp" else 2 * one // nodes
    return (keep + 1) * part
