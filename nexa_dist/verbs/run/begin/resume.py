"""nexa run --resume: takes over a run that nobody supervises, or begins another attempt of one that is over."""

from __future__ import annotations

import contextlib
import re
import shlex
from argparse import Namespace as Arguments
from typing import Any

from nexa_dist.config.load import changed_train, recorded_train, resolved
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.health.gate import refuse_unfit
from nexa_dist.ops.notify import targets
from nexa_dist.ops.runs import checkpoints, launch
from nexa_dist.ops.runs import status as running
from nexa_dist.ops.runs.code import tell_kept
from nexa_dist.ops.runs.supervise import alone
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.plan.ranks import subset
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import connect, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.verbs._consent import whom_to_tell
from nexa_dist.verbs._shared import Shown, find_cluster, refuse_job
from nexa_dist.verbs._training import load_planned, refuse_detach
from nexa_dist.verbs.run.attach import taken_over
from nexa_dist.verbs.run.begin.fresh import printed, refuse_without_money, started
from nexa_dist.verbs.run.presenter import RunPresenter


def resumed(ctx: Context, folder: RunFolder, args: Arguments, shown: Shown) -> int:
    """Takes over a run that nobody supervises, or begins a new attempt of one that is over."""
    record = folder.load()
    refuse_job(folder.run_id, record.cluster)
    if record.going_on:
        options = {"--plan": args.plan, "--cluster": args.cluster}
        changes = [args.train, *args.set, *args.program, *(option for option, value in options.items() if value)]
        if given := next(filter(None, changes), "--print" if args.dry_run else ""):
            raise UsageError(
                f"{folder.run_id} goes on, so {given} could not be heeded",
                hint=f"nexa attach {folder.run_id} follows it; nexa stop {folder.run_id} before it is changed",
            )
        return taken_over(ctx, folder, shown)
    attempt = len(record.attempts) + 1
    config, changed = _as_asked(ctx, folder, record, args)
    cluster = subset(_where(ctx, record, args.cluster), config.nodes)
    if not args.dry_run and not args.ignore_diag:
        refuse_unfit(ctx.workspace.cluster(cluster.name), cluster)
    refuse_without_money(ctx, cluster, config)
    if not ctx.dry and (told := whom_to_tell(ctx, cluster, args.cluster)) is not None:
        targets.keep(ctx, folder, told)
    hold = contextlib.nullcontext(not folder.supervised) if ctx.dry else alone(folder, "run --resume")
    door = contextlib.ExitStack()
    with door, session(ctx.runner, cluster) as ssh, hold as ours:
        door.enter_context(running.launching(ctx, cluster))
        if not ours:
            raise UsageError(f"{folder.run_id} is in the hands of another nexa", hint=f"nexa attach {folder.run_id}")
        with ctx.phase("newest whole checkpoint"):
            links = connect(ssh)
            found = checkpoints.spread_checkpoint(ctx, links, record)
            ctx.detail(f"step {found[0]}, verified on every node" if found else "none yet: from the beginning")
        prepared = launch.prepare(
            ctx,
            ssh,
            config,
            folder.run_id,
            attempt,
            found,
            kept=None if ctx.dry else folder.brought,
            links=lambda: links,
        )
        if args.dry_run:
            return printed(prepared, args.json)
        launch.deliver(ctx, prepared)
        record = record.changed(
            cluster=cluster,
            by_hand=attempt,
            config=config.model_dump(mode="json"),
            config_file=args.train or record.config_file,
            git_commit=launch.commit(ctx, config, prepared.archives[0]),
        )
        folder.stop_wish.unlink(missing_ok=True)
        started(ctx, folder, prepared, record, changed=changed)
        door.close()
        tell_kept(ctx, record.last)
        presenter = RunPresenter(ctx, folder, record, shown, began=True)
        return presenter.follow(ssh, list(prepared.links))


def _as_asked(ctx: Context, folder: RunFolder, record: Run, args: Arguments) -> tuple[TrainConfig, list[str]]:
    """The training of another attempt, and what of it is not as it was: both are said."""
    before = recorded_train(record.config, folder.run_id)
    config = before
    if args.train:
        config = settled(ctx, load_planned(args))
    elif args.plan:
        hint = f"nexa run TRAIN.yaml --resume {folder.run_id} --plan {args.plan}"
        raise UsageError("--plan goes over a file", hint=hint)
    elif args.set or args.program:
        config = changed_train(record.config, folder.run_id, args.set, args.program)
    if config.name != before.name and any(re.split(r"\+?=", word)[0] == "name" for word in args.set):
        raise UsageError(f"the name of {folder.run_id} cannot change", hint="nexa run TRAIN.yaml begins another run")
    config = config.model_copy(update={"name": before.name})
    refuse_detach(config, args.detach)
    old, new = resolved(before), resolved(config)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    changed = [f"{key}: {_brief(old.get(key))} → {_brief(new.get(key))}" for key in keys]
    for line in changed:
        ctx.say(f"changed since attempt {len(record.attempts)}: {line}")
    return config, changed


def _brief(value: Any) -> str:
    return "not set" if value is None else shlex.join(value) if isinstance(value, list) else str(value)


def _where(ctx: Context, record: Run, named: str | None) -> Cluster:
    """The cluster of another attempt: that of the run, as it is now."""
    cluster = record.cluster
    if named:
        found = find_cluster(ctx, named)
        if found.name != cluster.name:
            raise UsageError(
                f"{record.run_id} is a run of cluster {cluster.name}, not of {found.name}",
                hint="nexa run TRAIN.yaml --cluster … begins another run",
            )
        return found
    return cluster if not cluster.traits.makes else ctx.workspace.cluster(cluster.name).load()
