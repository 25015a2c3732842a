"""nexa preflight: what a training needs of each rank, on nodes that are there or would be rented."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist import wire
from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws import prices
from nexa_dist.plan.fit.judge import MOST_PARAMETERS, Fit, cheapest, on
from nexa_dist.plan.fit.memory import Work
from nexa_dist.plan.fit.model_shape import ModelShape, read
from nexa_dist.run import files
from nexa_dist.run.ssh.connections import connect, session
from nexa_dist.shape import anything

REGION = "us-east-1"
"""Whose prices count where no region is named: the book has every type there."""
Nodes = Cluster | ClusterConfig


@dataclass(frozen=True)
class Seen:
    """What a preflight found. `there`: on the nodes of the cluster, or on each offer of its file, in their order."""

    shape: ModelShape
    work: Work
    steps: int
    there: tuple[Fit, ...]
    cheapest: tuple[Fit, ...]

    @property
    def refused(self) -> str:
        """Why it cannot be trained; empty when it can, as far as anybody knows."""
        count = self.shape.parameters
        if count > MOST_PARAMETERS:
            return (
                f"the model has {count / 1e9:.1f} B parameters, backend hf takes at most "
                f"{MOST_PARAMETERS / 1e9:.0f} B: DDP holds all of it on every rank"
            )
        if self.there and not any(fit.fits for fit in self.there):
            first = self.there[0]
            return (
                f"a rank needs {first.memory.needed / 2**30:.1f} GiB, and one {first.type.gpu} of {first.type.name} "
                f"has {first.type.gpu_memory_gib:g} GiB"
            )
        return ""


def preflight(ctx: Context, config: TrainConfig, cluster: Nodes | None) -> Seen:
    """Raises UsageError where the model is the script's own, or nobody here can read its config.json."""
    if config.model is None or config.dataset is None or config.trainer is None:
        raise UsageError(
            f"the model of {config.script or config.module} is its own: nobody here knows what it needs",
            hint="nexa preflight is for backend: hf",
        )
    path, told = config.model.path, "train.yaml"
    if path is None:
        settings: Mapping[str, Any] = _from_scratch(config)
    else:
        settings, told = _config_json(ctx, path, cluster), f"{path}/config.json"
    shape = read(settings, told)
    if path is not None and config.dataset.sequence_length > shape.positions:
        raise UsageError(
            f"dataset.sequence_length is {config.dataset.sequence_length}, "
            f"and the model has {shape.positions} positions",
            hint="shorten it, or take a model with more",
        )
    work = Work(config.trainer.precision, 1, config.trainer.batch_size, config.dataset.sequence_length)
    steps = config.trainer.steps
    region = (cluster.region if cluster else "") or os.environ.get("AWS_REGION") or REGION
    there = tuple(
        on(prices.book().types[kind], count, shape, work, steps, usd)
        for kind, count, usd in _rented(cluster, region)
        if kind in prices.book().types
    )
    return Seen(shape, work, steps, there, tuple(cheapest(shape, work, steps, region)))


def warn(ctx: Context, cluster: Cluster, config: TrainConfig) -> None:
    """Before a run: raises UsageError for a model that backend hf never takes, and says when memory seems too small.
    Of a pretrained directory nothing is asked, which would take a trip."""
    if config.backend != "hf" or config.model is None or config.model.path is not None:
        return
    seen = preflight(ctx, config, cluster)
    if seen.shape.parameters > MOST_PARAMETERS:
        raise UsageError(seen.refused, hint="nexa preflight TRAIN.yaml shows what it needs")
    if seen.refused:
        ctx.say(f"warning: {seen.refused} (nexa preflight shows by what)")


def _from_scratch(config: TrainConfig) -> dict[str, Any]:
    """The config.json of the model that train/models.py builds."""
    model, dataset = config.model, config.dataset
    assert model is not None and dataset is not None
    return {
        "model_type": "llama", "vocab_size": model.vocab_size, "hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
        "intermediate_size": model.intermediate_size, "max_position_embeddings": dataset.sequence_length,
        "tie_word_embeddings": True,
    }  # fmt: skip


def _config_json(ctx: Context, path: str, cluster: Nodes | None) -> dict[str, Any]:
    """Of a pretrained directory: as it is here, or on the first node."""
    here = Path(path, "config.json")
    if here.is_file():
        return files.read_object(here)
    if not isinstance(cluster, Cluster):
        raise UsageError(f"model.path {path} is not on this machine", hint="--cluster NAME reads it on its first node")
    with session(ctx.runner, cluster) as ssh:
        link = connect(ssh, cluster.nodes[:1])[0]
        got = ssh.run(link.node, ("sh", "-c", f"cat -- {shlex.quote(link.path(path))}/config.json"))
        if got.code:
            raise NexaError(f"{link.node.name}: {got.tail(1)}", hint="model.path is a directory on every node")
        return dict(wire.said(link.node.name, "config.json", got.out, anything(6, 1000)))


def _rented(cluster: Nodes | None, region: str) -> list[tuple[str, int, float | None]]:
    """Instance type, how many nodes of it, USD/h of one."""
    if isinstance(cluster, Cluster):
        first = cluster.nodes[0]
        return [(first.offer.partition(" ")[0], len(cluster.nodes), first.price_usd_per_hour or None)]
    if cluster is None or cluster.offers == "cheapest":
        return []
    named = dict.fromkeys(offer.type for offer in cluster.offers if not isinstance(offer, str))
    return [(kind, cluster.nodes or 1, prices.on_demand(kind, region)) for kind in named]
