"""nexa preflight: what a training needs of each rank, on nodes that are there or would be rented."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexa_dist import wire
from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.fit import checks
from nexa_dist.ops.fit.asked import Asked, asked
from nexa_dist.ops.fit.checks import Check
from nexa_dist.plan.aws import prices
from nexa_dist.plan.fit import tiers
from nexa_dist.plan.fit.judge import MOST_NODES, Fit, instead, on, room, smallest
from nexa_dist.plan.fit.memory import memory
from nexa_dist.plan.fit.method import Work
from nexa_dist.plan.fit.model_shape import ModelShape, read
from nexa_dist.run import files
from nexa_dist.run.ssh.connections import connect, session
from nexa_dist.shape import anything
from nexa_dist.train.keeper import KEEP

REGION = "us-east-1"
"""Whose prices count where no region is named: the book has every type there."""
SHOWN = 3
Nodes = Cluster | ClusterConfig


@dataclass(frozen=True)
class Seen:
    """What a preflight found. `tokens`: of the whole training. `there`: on the nodes of the cluster, or
    on each offer of its file, in their order.
    `cheapest`: what would fit as it is; `instead`: by other methods, where it does not fit."""

    shape: ModelShape
    work: Work
    tokens: float
    there: tuple[Fit, ...]
    cheapest: tuple[Fit, ...]
    instead: tuple[Fit, ...]
    checks: tuple[Check, ...]

    @property
    def too_large(self) -> str:
        """Why no cluster helps; empty when one may."""
        return tiers.refusal(self.shape, self.work.method)

    @property
    def refused(self) -> str:
        """Why it cannot be trained; empty when it can, as far as anybody knows."""
        if self.too_large:
            return self.too_large
        if self.there and not any(fit.fits for fit in self.there):
            return room(self.there[0].type, self.there[0].memory)
        return next((f"{check.name}: {check.said}" for check in self.checks if check.ok is False), "")


def preflight(ctx: Context, config: TrainConfig, cluster: Nodes | None, backend: str = "") -> Seen:
    """`backend`: a name of METHODS, to be looked at instead of what the file has. Raises UsageError where the model is
    the script's own, or nobody here can read its config.json."""
    wanted = asked(config, ctx.workspace.root, backend)
    settings, told = wanted.settings, "train.yaml"
    if wanted.path:
        settings, told = _config_json(ctx, wanted.path, cluster), f"{wanted.path}/config.json"
    if wanted.words:
        settings = {**settings, "vocab_size": _config_json(ctx, wanted.words, cluster).get("vocab_size")}
    shape = read(settings, told)
    region = (cluster.region if cluster else "") or os.environ.get("AWS_REGION") or REGION
    work = wanted.work
    if wanted.teacher:
        at = wanted.teacher
        work = replace(work, teacher=read(_config_json(ctx, at, cluster), f"{at}/config.json"))
    rented = [row for row in _rented(cluster, region) if row[0] in prices.book().types]
    ranks = prices.book().types[rented[0][0]].gpus * rented[0][1] if rented else 1
    tokens = float(wanted.steps * work.windows * work.tokens * ranks)  # the same on all that is compared
    there = tuple(on(prices.book().types[kind], count, shape, work, tokens, usd) for kind, count, usd in rented)
    as_it_is = tuple(smallest(shape, work, tokens, region)[:SHOWN])
    fits = any(fit.fits for fit in there) if there else bool(as_it_is)
    others = () if fits else tuple(instead(shape, work, tokens, region))
    found = tuple(_checks(ctx, wanted, shape, cluster, there))
    known = any(region in kind.on_demand_usd_per_hour for kind in prices.book().types.values())
    if known and not there and not as_it_is and not isinstance(cluster, Cluster):
        said = f"no {MOST_NODES} nodes of a type in the price book, or fewer, hold it by {work.method.title}"
        found = (*found, Check("memory", False, said, "a smaller batch_size or sequence_length, or checkpointing"))
    return Seen(shape, work, tokens, there, as_it_is, others, found)


def warn(ctx: Context, cluster: Cluster, config: TrainConfig) -> None:
    """Before a run: raises UsageError for a model that its backend never takes, and says when memory seems too small.
    Of a pretrained directory that is not here nothing is asked, which would take a trip."""
    wanted = asked(config, ctx.workspace.root)
    if not all(Path(one, "config.json").is_file() for one in (wanted.path, wanted.teacher, wanted.words) if one):
        return
    try:
        seen = preflight(ctx, config, cluster)
    except UsageError:
        if not wanted.path:
            raise
        return  # a model that cannot be counted here may train all the same
    if seen.too_large:
        raise UsageError(seen.too_large, hint="nexa preflight TRAIN.yaml shows what would fit, and what it costs")
    if wrong := next((check for check in seen.checks if check.name == "teacher" and check.ok is False), None):
        raise UsageError(f"trainer.kd_teacher: {wrong.said}", hint=wrong.next)
    if seen.refused:
        ctx.say(f"warning: {seen.refused} (nexa preflight shows by what)")


def _checks(
    ctx: Context, wanted: Asked, shape: ModelShape, cluster: Nodes | None, there: tuple[Fit, ...]
) -> Iterable[Check]:
    yield checks.positions(shape, wanted.work)
    yield checks.tokenizer(shape, wanted.path or wanted.words)
    if wanted.teacher:
        yield checks.teacher(wanted.path or wanted.words, wanted.teacher)
    yield from checks.data(wanted.data, ctx.workspace.root, ours=wanted.examples, other=wanted.other)
    first = there[0] if there else None
    made = first.memory if first else memory(shape, wanted.work)
    nodes = first.nodes if first else len(cluster.nodes) if isinstance(cluster, Cluster) else 1
    nvme = made.nvme * (first.type.gpus if first else 1)
    if first and not first.fits and (fits := next((fit for fit in there if fit.fits), None)):
        said = f"{first.type.name} may be taken first, and it does not fit"
        yield Check("offers", False, said, f"offers: [{{type: {fits.type.name}}}] in the cluster's file")
    yield checks.disk(shape, first.work if first else wanted.work, nodes, KEEP, nvme, _disk_gb(ctx, cluster))


def _disk_gb(ctx: Context, cluster: Nodes | None) -> float | None:
    """Of one node; None where nobody wrote it down."""
    if isinstance(cluster, ClusterConfig):
        return cluster.volume_gb if cluster.traits.priced else None
    if cluster is None or not cluster.traits.priced:
        return None
    file = ctx.workspace.cluster(cluster.name).path / "config.json"
    kept = files.read_object(file).get("volume_gb") if file.is_file() else None
    default = ClusterConfig.model_fields["volume_gb"].default
    return float(kept if isinstance(kept, int) else default)


def _config_json(ctx: Context, path: str, cluster: Nodes | None) -> Mapping[str, Any]:
    """Of a pretrained directory: as it is here, or on the first node."""
    here = Path(path, "config.json")
    if here.is_file():
        return files.read_object(here)
    if not isinstance(cluster, Cluster):
        raise UsageError(f"the model {path} is not on this machine", hint="--cluster NAME reads it on its first node")
    with session(ctx.runner, cluster) as ssh:
        link = connect(ssh, cluster.nodes[:1])[0]
        got = ssh.run(link.node, ("sh", "-c", f"cat -- {shlex.quote(link.path(path))}/config.json"))
        if got.code:
            raise NexaError(f"{link.node.name}: {got.tail(1)}", hint="the model is a directory on every node")
        return dict(wire.said(link.node.name, "config.json", got.out, anything(6, 1000)))


def _rented(cluster: Nodes | None, region: str) -> list[tuple[str, int, float | None]]:
    """Instance type, how many nodes of it, USD/h of one."""
    if isinstance(cluster, Cluster):
        first = cluster.nodes[0]
        return [(first.offer.partition(" ")[0], len(cluster.nodes), first.price_usd_per_hour or None)]
    if cluster is None:
        return []
    named = dict.fromkeys(offer.type for offer in cluster.offers if not isinstance(offer, str))
    if not named:  # "cheapest": all that have as many GPUs
        known = [kind for kind in prices.book().types.values() if kind.gpus == cluster.gpus_per_node]
        priced = [(kind.on_demand_usd_per_hour[region], kind.name) for kind in known
                  if region in kind.on_demand_usd_per_hour]  # fmt: skip
        named = dict.fromkeys(name for _, name in sorted(priced))
    return [(kind, cluster.nodes or 1, prices.on_demand(kind, region)) for kind in named]
