"""nexa run --from RUN: a new run of what that one consisted of."""

from __future__ import annotations

from argparse import Namespace as Arguments

from nexa_dist.config.load import changed_train, recorded_train
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.work import origin as origins
from nexa_dist.plan.ranks import subset
from nexa_dist.run.workspace import RunFolder
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import borrowed, find_cluster


def reproduced(ctx: Context, folder: RunFolder, args: Arguments) -> tuple[Cluster, origins.Origin]:
    """Where it runs, and what it is made of; says what of it cannot be had any more, and raises UsageError for that."""
    if given := args.train or (args.resume and "--resume") or (args.plan and "--plan"):
        raise UsageError(
            f"--from takes what {folder.run_id} had, so {given} could not be heeded", hint="--set changes it"
        )
    record = folder.load()
    config = recorded_train(record.config, folder.run_id)
    changed = [*args.set, *([f"args += {' '.join(args.program)}"] if args.program else [])]
    if changed:
        config = changed_train(record.config, folder.run_id, args.set, args.program)
    cluster = subset(_where(ctx, record.cluster, args.cluster), config.nodes)
    found = origins.find(ctx, folder, config, cluster, changed)
    ctx.say(f"▸ as {folder.run_id} was:")
    for part in found.parts:
        ctx.say(f"  {part.state}: {terminal.plain(str(part))}")
    if (other := found.of("differs")) and not args.anyway:
        raise UsageError(
            "not all of it is as it was: " + "; ".join(map(str, other)),
            hint="--anyway runs it, and the manifest says so",
        )
    return cluster, found


def _where(ctx: Context, was: Cluster, named: str | None) -> Cluster:
    """The cluster that is named, else that of the run, as it is now."""
    if named:
        return find_cluster(borrowed(ctx, named), named)
    return ctx.workspace.cluster(was.name).load() if was.traits.makes else was
