"""nexa preflight: whether a training fits, how long it takes, what it costs; before anything is rented or started."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nexa_dist.config.load import load_train
from nexa_dist.errors import EXIT_FAILED, EXIT_OK
from nexa_dist.ops.fit import Nodes, Seen
from nexa_dist.ops.fit import preflight as seen_of
from nexa_dist.plan.fit.judge import Fit
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, find_cluster, is_file, load_said

Arguments = argparse.Namespace
GIB = 2**30


def preflight(args: Arguments) -> int:
    ctx = context(acts=False, cluster=args.cluster)
    cluster: Nodes | None = None
    if args.cluster:
        config = load_said(Path(args.cluster)) if is_file(args.cluster) else None
        cluster = config if config and config.traits.priced else find_cluster(ctx, args.cluster)
    seen = seen_of(ctx, load_train(Path(args.train), args.set), cluster)
    for line in _lines(seen):
        terminal.say(line)
    if seen.refused:
        would = seen.cheapest[0] if seen.cheapest else None
        hint = f"the cheapest that fits: {_title(would)}" if would else "a smaller model, batch_size or sequence_length"
        terminal.error(seen.refused, hint)
    if args.json:
        terminal.emit(
            {
                "parameters": seen.shape.parameters,
                "active_parameters": seen.shape.active,
                "tokens_a_step_and_rank": seen.work.tokens,
                "refused": seen.refused or None,
                "there": [fit.to_json() for fit in seen.there],
                "cheapest": [fit.to_json() for fit in seen.cheapest],
            }
        )
    return EXIT_FAILED if seen.refused else EXIT_OK


def _lines(seen: Seen) -> list[str]:
    from nexa_dist.plan.fit.memory import memory

    made = seen.there[0].memory if seen.there else memory(seen.shape, seen.work)
    parts = ", ".join(
        f"{name} {getattr(made, name) / GIB:.2f}"
        for name in ("weights", "gradients", "optimizer", "buckets", "activations", "logits")
        if getattr(made, name)
    )
    work = seen.work
    return [
        f"model: {seen.shape.parameters / 1e6:,.1f} M parameters ({seen.shape.family})",
        f"a rank: {work.batch} windows of {work.sequence} tokens a step, {work.precision}; {parts} GiB",
        f"at most {made.peak / GIB:.2f} GiB at once, so a GPU of {made.needed / GIB:.2f} GiB or more "
        "(1.1 GiB of CUDA's own and 5 % that no tensor can use are assumed, not measured)",
        *(f"{'fits' if fit.fits else 'does not fit'}: {_title(fit)}" for fit in seen.there),
        *(f"would fit, cheapest for the same tokens first: {_title(fit)}" for fit in seen.cheapest if not seen.there),
    ]


def _title(fit: Fit) -> str:
    """Nodes, GPUs, time and money of a fit, as far as they are known."""
    what = f"{fit.nodes} × {fit.type.name} ({fit.type.gpus} × {fit.type.gpu}, {fit.type.gpu_memory_gib:g} GiB each)"
    known: list[Any] = []
    if fit.tokens_per_s is not None and fit.hours is not None:
        known.append(f"about {fit.tokens_per_s:,.0f} tokens/s, {fit.hours:.2f} h")
    if fit.usd is not None:
        known.append(f"{fit.usd:.2f} USD")
    return ", ".join([what, *known])
