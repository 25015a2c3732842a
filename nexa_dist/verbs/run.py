"""run, attach, stop, logs, runs."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from nexa_dist import ui
from nexa_dist.config.load import load_train, recorded_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import EXIT_BUDGET, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STILL_RUNNING, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops import finish, launch, resume, watch
from nexa_dist.ops import runs as running
from nexa_dist.ops.context import Context
from nexa_dist.run.follow import Line
from nexa_dist.run.nodes import connect, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.verbs.common import context, find_cluster

Arguments = argparse.Namespace


def run(args: Arguments) -> int:
    ctx, shown = context(), ranks(args.rank)
    if bool(args.train) == bool(args.resume):
        raise UsageError("nexa run takes TRAIN.yaml or --resume RUN", hint="nexa runs lists what can be resumed")
    if args.resume:
        return resumed(ctx, ctx.workspace.run(args.resume), args, shown)
    config = load_train(Path(args.train), args.set)
    cluster = find_cluster(ctx, args.cluster)
    return launched(
        ctx, cluster, config, args.train, dry_run=args.dry_run, detach=args.detach, shown=shown, as_json=args.json
    )


def launched(
    ctx: Context,
    cluster: Cluster,
    config: TrainConfig,
    config_file: str,
    *,
    dry_run: bool = False,
    detach: bool = False,
    shown: set[int] | None = None,
    as_json: bool = False,
) -> int:
    """A new run, followed to its end."""
    if not dry_run:
        running.refuse_busy(ctx, cluster)
    with session(ctx.runner, cluster) as ssh:
        if dry_run:
            return printed(launch.prepare(ctx, ssh, config, "train_dry_run", 1, None), as_json)
        with ctx.phase(f"checks on {len(cluster.nodes)} nodes"):
            folder = ctx.workspace.new_run(config.stage, config.name)
            try:
                prepared = launch.prepare(ctx, ssh, config, folder.run_id, 1, None)
                launch.send(ctx, prepared.links, prepared.archives)
            except BaseException:
                folder.path.rmdir()  # nothing was started, so there is no run
                raise
        record = launch.new_record(ctx, folder.run_id, cluster, config, config_file)
        launch.start(folder, prepared, record, 1)
        return follow_to_end(ctx, folder, list(prepared.links), record, shown, detach, as_json)


def resumed(ctx: Context, folder: RunFolder, args: Arguments, shown: set[int] | None) -> int:
    """A new attempt of a run, from its newest whole checkpoint."""
    record = folder.load()
    if running.active(folder):
        raise UsageError(
            f"{folder.run_id} has not ended", hint=f"nexa attach {folder.run_id}, or nexa stop {folder.run_id}"
        )
    attempt = len(record["attempts"]) + 1
    config = recorded_train(record["config"], folder.run_id)
    cluster = Cluster.from_json(record["cluster"])
    if cluster.provider != "static":
        cluster = ctx.workspace.cluster(cluster.name).load()
    running.refuse_busy(ctx, cluster)
    with session(ctx.runner, cluster) as ssh:
        with ctx.phase("newest whole checkpoint"):
            links = connect(ssh)
            found = resume.spread_checkpoint(ctx, links, record)
            ctx.detail(f"step {found[0]}, verified on every node" if found else "none yet: from the beginning")
        prepared = launch.prepare(ctx, ssh, config, folder.run_id, attempt, found)
        if args.dry_run:
            return printed(prepared, args.json)
        launch.send(ctx, prepared.links, prepared.archives)
        record["cluster"] = cluster.to_json()
        launch.start(folder, prepared, record, attempt)
        return follow_to_end(ctx, folder, list(prepared.links), record, shown, args.detach, args.json)


def printed(prepared: launch.Prepared, as_json: bool) -> int:
    """`--print`: the command and environment of each node, as they would run."""
    if as_json:
        ui.emit({name: {"argv": spec["argv"], "env": spec["env"]} for name, spec in prepared.specs.items()})
        return EXIT_OK
    for node_plan in prepared.plan.nodes:
        spec = prepared.specs[node_plan.node.name]
        last = node_plan.first_rank + node_plan.nproc - 1
        span = f"ranks {node_plan.first_rank} to {last} of {prepared.plan.world_size}"
        ui.out(f"# {node_plan.node.name} ({node_plan.node.address}): {span}")
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(spec["env"].items())]
        ui.out(f"cd {shlex.quote(spec['cwd'])} && env {' '.join(words)} {shlex.join(spec['argv'])}")
    return EXIT_OK


def follow_to_end(
    ctx: Context,
    folder: RunFolder,
    links: list[Any],
    record: dict[str, Any],
    shown: set[int] | None,
    detach: bool,
    as_json: bool,
) -> int:
    """Shows the run, then says how it ended; the exit code says it too."""
    world = record["attempts"][-1]["world_size"]
    ctx.say(f"▸ run {folder.run_id}: {world} ranks on {len(links)} nodes, rendezvous {record['attempts'][-1]['rdzv']}")

    def on_line(line: Line) -> None:
        if (line.rank is None and line.source.startswith("prepare")) or (
            line.rank is not None and (shown is None or line.rank in shown)
        ):
            where = f"{line.node}:{line.rank}" if line.rank is not None else f"{line.node}:prepare"
            ctx.say(f"[{where}] {ui.plain(line.text.decode(errors='replace'))}")

    def on_interrupt() -> watch.Choice:
        if not ui.interactive():
            return "stop"
        answer = ui.choose("interrupted.", {"d": "detach (the run goes on)", "s": "stop it"}, "s")
        return "detach" if answer == "d" else "stop"

    outcome = watch.watch(ctx, folder, links, record, on_line=on_line, on_interrupt=on_interrupt, detach=detach)
    if outcome is None:
        ctx.say(f"the run goes on. Follow it: nexa attach {folder.run_id}; end it: nexa stop {folder.run_id}")
        if as_json:
            ui.emit({"run": folder.run_id, "state": "running"})
        return EXIT_OK
    finish.finish(ctx, folder, links, record, outcome)
    return told(ctx, folder, outcome, as_json)


def told(ctx: Context, folder: RunFolder, outcome: watch.Outcome, as_json: bool) -> int:
    """The last words about an attempt."""
    row = running.summary(folder)
    if outcome.failed_source:
        node, source = outcome.failed_source
        for line in finish.tail(folder, node, source):
            ctx.say(f"  {ui.plain(line)}")
    sign = "✓" if outcome.state == "completed" else "✗"
    why = f": {outcome.cause}" if outcome.cause else ""
    ctx.say(f"{sign} {folder.run_id} {outcome.state}{why}")
    ctx.say(f"  {row['minutes']} min, {row['gpu_hours']} GPU-hours, {row['cost_usd']:.2f} USD")
    here = ctx.workspace.root
    ctx.say(f"  manifest {folder.manifest.relative_to(here)}, logs {folder.logs.relative_to(here)}")
    unknown = [name for name, count in outcome.left.items() if count is None]
    left = {name: count for name, count in outcome.left.items() if count}
    ctx.say(
        "  processes left: "
        + ", ".join(f"{name} {count if count is not None else 'unknown'}" for name, count in outcome.left.items())
    )
    if as_json:
        ui.emit({**row, "cause": outcome.cause, "left": outcome.left, "manifest": str(folder.manifest)})
    if unknown or left:
        ui.error(
            f"not proven clean: {', '.join([*unknown, *left])}", f"nexa stop {folder.run_id} once they answer again"
        )
        return EXIT_STILL_RUNNING
    if outcome.state == "stopped":
        return EXIT_BUDGET if outcome.cause == "deadline" else EXIT_INTERRUPTED
    return EXIT_OK if outcome.state == "completed" else EXIT_FAILED


def attach(args: Arguments) -> int:
    ctx = context()
    folder = ctx.workspace.run(args.run)
    record = folder.load()
    if not running.active(folder):
        raise UsageError(f"{folder.run_id} has ended", hint=f"nexa logs {folder.run_id} shows its lines")
    with session(ctx.runner, Cluster.from_json(record["cluster"])) as ssh:
        return follow_to_end(ctx, folder, connect(ssh), record, ranks(args.rank), False, args.json)


def stop(args: Arguments) -> int:
    ctx = context()
    if not args.run:  # an unset variable of a script must not stop whatever is newest
        raise UsageError("nexa stop needs the name of a run", hint="nexa runs lists them")
    answer = running.stop(ctx, ctx.workspace.run(args.run), args.grace)
    ended = ", ".join(f"{node} {count}" for node, count in answer["ended"].items())
    ctx.say(f"✓ {answer['run']} {answer['state']}; processes ended: {ended}; left: 0")
    if args.json:
        ui.emit(answer)
    return EXIT_OK


def logs(args: Arguments) -> int:
    ctx = context()
    folder = ctx.workspace.run(args.run)
    keep = running.wanted(ranks(args.rank), args.node, args.grep)
    if args.node is not None and args.node not in (known := folder.load()["nodes"]):
        raise UsageError(f"{folder.run_id} has no node {args.node!r}", hint=f"nodes: {', '.join(known)}")
    for line in running.logs(ctx, folder, follow_on=args.follow):
        if not keep(line):
            continue
        if args.json:
            text = line.text.decode(errors="replace")
            ui.out(json.dumps({"node": line.node, "rank": line.rank, "source": line.source, "line": text}))
        else:
            where = f"{line.node}:{line.rank if line.rank is not None else line.source.split('.')[0]}"
            ui.out_bytes(f"[{where}] ".encode() + line.text)
    return EXIT_OK


def runs(args: Arguments) -> int:
    rows = [running.summary(found) for found in context().workspace.runs()]
    if args.json:
        ui.emit(rows)
    elif rows:
        ui.table(rows, ("run", "state", "cluster", "minutes", "cost_usd", "cause"))
    else:
        ui.say("no run yet")
    return EXIT_OK


def ranks(text: str) -> set[int] | None:
    """`0,3` as a set, `all` or nothing as None. Raises UsageError."""
    if text in ("", "all"):
        return None
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in text.split(",")):
        raise UsageError(f"--rank {text!r} is neither 'all' nor ranks such as 0,3")
    return {int(part) for part in text.split(",")}
