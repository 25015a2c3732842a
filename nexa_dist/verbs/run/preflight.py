"""nexa preflight: whether a training fits, how long it takes, what it costs; before anything is rented or started."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_FAILED, EXIT_OK
from nexa_dist.ops.fit.preflight import Nodes, Seen
from nexa_dist.ops.fit.preflight import preflight as seen_of
from nexa_dist.plan.fit.judge import Fit
from nexa_dist.plan.fit.memory import memory
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, find_cluster, is_file, load_said
from nexa_dist.verbs._training import load_planned

GIB = 2**30
SHOWN = 8
MARKS = {True: "fits", False: "does not fit", None: "not known"}
PARTS = ("weights", "gradients", "optimizer", "buckets", "gathered", "activations", "casts", "recomputed", "logits",
         "teacher")  # fmt: skip


def preflight(args: Arguments) -> int:
    ctx = context(acts=False, cluster=args.cluster)
    cluster: Nodes | None = None
    if args.cluster:
        config = load_said(Path(args.cluster)) if is_file(args.cluster) else None
        cluster = config if config and config.traits.priced else find_cluster(ctx, args.cluster)
    seen = seen_of(ctx, load_planned(args), cluster, args.backend or "")
    show(seen)
    if args.json:
        terminal.emit(to_json(seen))
    return EXIT_FAILED if seen.refused else EXIT_OK


def show(seen: Seen) -> None:
    """What was found, for a person; and why it is refused, with what would fit."""
    for line in _lines(seen):
        terminal.say(line)
    if seen.refused:
        would = [*seen.instead, *seen.cheapest]
        check = next((check for check in seen.checks if check.ok is False and check.name in seen.refused), None)
        hint = check.next if check else "a smaller model, batch_size or sequence_length"
        if would and (not check or check.name == "memory"):
            first = min(would, key=lambda fit: fit.usd or 0.0)
            hint = f"the cheapest that fits, for the same tokens: {_title(first)}, {first.work.method.title}"
        terminal.error(seen.refused, hint)


def to_json(seen: Seen) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "parameters": seen.shape.parameters,
        "active_parameters": seen.shape.active,
        "tokens_a_step_and_rank": seen.work.tokens * seen.work.windows,
        "tokens": seen.tokens,
        "method": seen.work.method.title,
        "refused": seen.refused or None,
        "there": [fit.to_json() for fit in seen.there],
        "cheapest": [fit.to_json() for fit in seen.cheapest],
        "instead": [fit.to_json() for fit in seen.instead],
        "checks": [check.to_json() for check in seen.checks],
    }


def _lines(seen: Seen) -> list[str]:
    first = next(iter((*seen.there, *seen.cheapest)), None)
    made, ranks = (first.memory, first.world_size) if first else (memory(seen.shape, seen.work), 1)
    parts = ", ".join(f"{name} {getattr(made, name) / GIB:.2f}" for name in PARTS if getattr(made, name))
    work = seen.work
    away = [f"{size / GIB:.2f} GiB {where}" for size, where in
            ((made.host, "in the node's memory"), (made.nvme, "on its disk")) if size]  # fmt: skip
    return [
        f"model: {seen.shape.parameters / 1e6:,.1f} M parameters ({seen.shape.family}); {work.method.title}",
        f"a rank of {ranks}: {work.batch} windows of {work.sequence} tokens at once, {work.precision}; {parts} GiB"
        + (f"; {', '.join(away)}" if away else ""),
        f"at most {made.peak / GIB:.2f} GiB at once, so a GPU of {made.needed / GIB:.2f} GiB or more "
        "(1.1 GiB of CUDA's own and 5 % that no tensor can use are assumed, not measured)",
        *(f"{MARKS[check.ok]}: {check.name}: {check.said}" for check in seen.checks),
        *(f"{MARKS[fit.fits]}: {_title(fit)}" for fit in seen.there[:SHOWN]),
        *([f"and {len(seen.there) - SHOWN} more types"] if len(seen.there) > SHOWN else []),
        *(f"would fit, cheapest for the same tokens first: {_title(fit)}" for fit in seen.cheapest if not seen.there),
        *(f"would fit by another method: {_title(fit)}, {fit.work.method.title}" for fit in seen.instead),
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
