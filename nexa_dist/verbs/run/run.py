"""nexa run: a new run, or an old one again.

The first that a launch needs is a connection to every node, so they are made while the rest of us is imported.
"""

from __future__ import annotations

import argparse

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.health.gate import refuse_unfit
from nexa_dist.ops.queue import Queue
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.plan.ranks import subset
from nexa_dist.run.ssh.connections import connecting, session
from nexa_dist.verbs._shared import at_home, borrowed, context, find_cluster, load_planned, ranks, refuse_detach

Arguments = argparse.Namespace


def run(args: argparse.Namespace) -> int:
    if args.more or args.grid:
        from nexa_dist.verbs.run import queue

        return queue.begun(args)
    if args.stop_on_failure or args.picture:
        option = "--stop-on-failure" if args.stop_on_failure else "--picture"
        raise UsageError(f"{option} is for several runs", hint="nexa run A.yaml B.yaml, or --grid a.b=x,y")
    ctx, shown = context(dry=args.dry_run), ranks(args.rank)
    if not args.train and not args.resume:
        raise UsageError("nexa run takes TRAIN.yaml or --resume RUN", hint="nexa runs lists what can be resumed")
    if args.resume:
        from nexa_dist.verbs.run.resume import resumed

        return resumed(ctx, ctx.workspace.run(args.resume), args, shown)
    config = load_planned(args)
    cluster = find_cluster(borrowed(ctx, args.cluster), args.cluster)
    config = at_home(config, cluster)
    cluster = subset(cluster, config.nodes)
    folder = ctx.workspace.cluster(cluster.name)
    if Queue(folder).at_work_on({node.name for node in cluster.nodes}):
        raise UsageError(
            f"the queue of cluster {cluster.name} is at work",
            hint=f"nexa queue add {args.train} runs it after the others",
        )
    if not ctx.dry and not args.ignore_diag:
        refuse_unfit(folder, cluster)
    return launched(ctx, cluster, config, args.train, detach=args.detach, shown=shown, as_json=args.json)


def launched(
    ctx: Context,
    cluster: Cluster,
    config: TrainConfig,
    config_file: str,
    *,
    detach: bool = False,
    shown: set[int] | None = None,
    as_json: bool = False,
) -> int:
    """A new run, followed to its end."""
    refuse_detach(config, detach)
    config = settled(ctx, config)
    with session(ctx.runner, cluster) as ssh, connecting(ssh) as links:
        from nexa_dist.verbs.run import fresh

        if ctx.dry:
            return fresh.dry(ctx, ssh, links, config, as_json)
        return fresh.fresh(ctx, ssh, links, config, config_file, detach=detach, shown=shown, as_json=as_json)
