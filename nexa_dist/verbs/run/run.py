"""nexa run: a new run, or an old one again.

The first that a launch needs is a connection to every node, so they are made while the rest of us is imported.
"""

from __future__ import annotations

from argparse import Namespace as Arguments
from typing import TYPE_CHECKING

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.health.gate import refuse_unfit
from nexa_dist.ops.queue import Queue
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.plan.ranks import subset
from nexa_dist.run.ssh.connections import connecting, session
from nexa_dist.verbs._shared import Shown, borrowed, context, find_cluster
from nexa_dist.verbs._training import at_home, load_planned, refuse_detach

if TYPE_CHECKING:
    from nexa_dist.ops.work.origin import Origin


def run(args: Arguments) -> int:
    if args.origin and (args.more or args.grid):
        raise UsageError("--from is for one run", hint=f"nexa run --from {args.origin} --set a.b=c")
    if args.more or args.grid:
        from nexa_dist.verbs.run import queue

        return queue.begun(args)
    if args.stop_on_failure or args.picture:
        option = "--stop-on-failure" if args.stop_on_failure else "--picture"
        raise UsageError(f"{option} is for several runs", hint="nexa run A.yaml B.yaml, or --grid a.b=x,y")
    ctx, shown = context(dry=args.dry_run), Shown.asked(args)
    if args.origin:
        from nexa_dist.verbs.run.begin.reproduce import reproduced

        cluster, origin = reproduced(ctx, ctx.workspace.run(args.origin), args)
        refuse_in_use(ctx, cluster, args)
        file = origin.record.config_file
        return launched(ctx, cluster, origin.config, file, shown, cluster_file=args.cluster, origin=origin)
    if args.anyway:
        raise UsageError("--anyway is for --from", hint="nexa run --from RUN --anyway")
    if not args.train and not args.resume:
        raise UsageError("nexa run takes TRAIN.yaml or --resume RUN", hint="nexa runs lists what can be resumed")
    if args.resume:
        from nexa_dist.verbs.run.begin.resume import resumed

        return resumed(ctx, ctx.workspace.run(args.resume), args, shown)
    config = load_planned(args)
    cluster = find_cluster(borrowed(ctx, args.cluster), args.cluster)
    config = at_home(config, cluster)
    cluster = subset(cluster, config.nodes)
    refuse_in_use(ctx, cluster, args)
    return launched(ctx, cluster, config, args.train, shown, cluster_file=args.cluster)


def refuse_in_use(ctx: Context, cluster: Cluster, args: Arguments) -> None:
    """Raises UsageError while a queue is at work on the nodes, or when the newest diagnosis found them unfit."""
    folder = ctx.workspace.cluster(cluster.name)
    if Queue(folder).at_work_on({node.name for node in cluster.nodes}):
        raise UsageError(
            f"the queue of cluster {cluster.name} is at work",
            hint=f"nexa queue add {args.train or 'TRAIN.yaml'} runs it after the others",
        )
    if not ctx.dry and not args.ignore_diag:
        refuse_unfit(folder, cluster)


def launched(
    ctx: Context,
    cluster: Cluster,
    config: TrainConfig,
    config_file: str,
    shown: Shown,
    *,
    cluster_file: str | None = None,
    origin: Origin | None = None,
) -> int:
    """A new run, followed to its end."""
    refuse_detach(config, shown.detach)
    config = settled(ctx, config)
    with session(ctx.runner, cluster) as ssh, connecting(ssh) as links:
        from nexa_dist.ops.runs import launch
        from nexa_dist.verbs.run.begin import fresh

        if ctx.dry:
            codes = origin.codes if origin else None
            prepared = launch.prepare(ctx, ssh, config, "train_dry_run", 1, None, codes=codes, links=links)
            return fresh.printed(prepared, shown.as_json)
        return fresh.fresh(ctx, ssh, links, config, config_file, shown, cluster_file=cluster_file, origin=origin)
