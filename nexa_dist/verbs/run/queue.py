"""nexa queue: runs one after the other on a cluster; also what nexa run does with more than one file, or a grid."""

from __future__ import annotations

from argparse import Namespace as Arguments
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexa_dist.config.load import load_train, recorded_train
from nexa_dist.errors import EXIT_OK, ConfigError, Problem, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops import queue as kept_queue
from nexa_dist.ops.context import Context
from nexa_dist.ops.health.gate import refuse_unfit
from nexa_dist.ops.queue import Queue, Row
from nexa_dist.ops.runs.code import of_now
from nexa_dist.ops.runs.launch import commit
from nexa_dist.plan.ranks import assign_ranks, subset
from nexa_dist.plan.runs import grid
from nexa_dist.run.code.archive import Archive
from nexa_dist.verbs._shared import Shown, borrowed, context, find_cluster, find_folder
from nexa_dist.verbs._training import at_home, load_stage, plan_file, refuse_detach, refuse_no_script, words_of
from nexa_dist.verbs.run import queue_table
from nexa_dist.verbs.run.queue_worker import Worker


def queue(args: Arguments) -> int:
    ctx = context(acts=bool(args.action), dry=args.dry_run)
    if args.action == "add":
        return added(ctx, args)
    if args.action == "run":
        return worked(ctx, args)
    found = Queue(find_folder(ctx, args.cluster))
    if args.action:
        change = _removal(args.more) if args.action == "remove" else _move(args.more)
        if ctx.dry:
            change(found.load())
            ctx.say(f"would {args.action}: {' '.join(args.more)}")
            return EXIT_OK
        with found.changing() as kept:
            change(kept)
    queue_table.show(found, args.json, args.picture)
    return EXIT_OK


def _removal(words: list[str]) -> Any:
    if not words:
        raise UsageError("nexa queue remove takes the names of waiting runs", hint="nexa queue lists them")
    return lambda kept: kept_queue.remove(kept, words)


def _move(words: list[str]) -> Any:
    if len(words) != 2 or not words[1].isdecimal():
        raise UsageError("nexa queue move takes a waiting run and its place", hint="nexa queue move q5 1")
    return lambda kept: kept_queue.move(kept, words[0], int(words[1][:6]))


def added(ctx: Context, args: Arguments) -> int:
    """`nexa queue add`: nothing is begun by it."""
    found, rows, _ = _asked(ctx, args)
    if ctx.dry:
        return _told(rows, args)
    rows, codes = _frozen(ctx, rows)
    with found.changing() as kept:
        found.keep(codes)
        rows = kept_queue.add(kept, rows)
        kept.stop_on_failure |= args.stop_on_failure
    begins = "another nexa begins them" if found.at_work else "nexa queue run begins"
    ctx.say(f"{len(rows)} added: {', '.join(row.id for row in rows)}; {begins}")
    if args.json:
        queue_table.show(found, True, None)
    return EXIT_OK


def begun(args: Arguments) -> int:
    """`nexa run` with several files or a grid."""
    if args.resume or args.detach:
        which = "--resume" if args.resume else "--detach"
        raise UsageError(
            f"{which} is for one run, and the next of a queue is begun by a living nexa",
            hint="nexa queue add leaves runs waiting; nexa queue run, in tmux or under nohup, begins them",
        )
    ctx = context(dry=args.dry_run)
    found, rows, cluster = _asked(ctx, args)
    if ctx.dry:
        return _told(rows, args)
    rows, codes = _frozen(ctx, rows)
    with found.changing() as kept:
        found.keep(codes)
        before = sum(row.state == "waiting" for row in kept.rows)
        rows = kept_queue.add(kept, rows)
        kept.stop_on_failure = args.stop_on_failure
    if found.at_work:
        ctx.say(f"{len(rows)} added: {', '.join(row.id for row in rows)}; the nexa that is at work here begins them")
        return EXIT_OK
    if before:
        ctx.say(f"{before} that waited before go first; nexa queue shows them")
    return _work(ctx, found, cluster, args)


def worked(ctx: Context, args: Arguments) -> int:
    """`nexa queue run`: goes on where the one before left, however it ended."""
    cluster = find_cluster(borrowed(ctx, args.cluster), args.cluster)
    found = Queue(ctx.workspace.cluster(cluster.name))
    if args.more or args.grid or args.set or args.plan:
        raise UsageError("nexa queue run takes no file", hint="nexa queue add TRAIN.yaml adds one")
    rows = [row for row in found.load().rows if row.state in ("running", "waiting")]
    if not rows:
        ctx.say(f"nothing waits in the queue of {cluster.name}")
        return EXIT_OK
    if ctx.dry:
        return _told(rows, args)
    if args.stop_on_failure:
        with found.changing() as kept:
            kept.stop_on_failure = True
    return _work(ctx, found, cluster, args)


def _work(ctx: Context, found: Queue, cluster: Cluster, args: Arguments) -> int:
    if not args.ignore_diag:
        refuse_unfit(found.folder, cluster)
    return Worker(ctx, found, cluster, Shown.asked(args), args.picture).work()


def _told(rows: list[Row], args: Arguments) -> int:
    """Tell what a dry run would begin, in its order."""
    queue_table.rows_out([queue_table.of_row(row) for row in rows], args.json)
    return EXIT_OK


def _asked(ctx: Context, args: Arguments) -> tuple[Queue, list[Row], Cluster]:
    """The rows that these words mean, all of them valid, and the cluster. Raises ConfigError with every fault at once,
    before anything is written or begun."""
    names = [name for name in (getattr(args, "train", None), *args.more) if name]
    if not names:
        raise UsageError("no TRAIN.yaml is named", hint="nexa run T.yaml --grid trainer.learning_rate=1e-3,3e-4")
    points = grid.points(args.grid)
    cluster = find_cluster(borrowed(ctx, args.cluster), args.cluster)
    rows, problems = list[Row](), list[Problem]()
    for name in names:
        for point in points:
            try:
                rows.append(_row(ctx, cluster, name, point, args))
            except ConfigError as error:
                problems += [_of_grid(problem, point) for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Queue(ctx.workspace.cluster(cluster.name)), rows, cluster


def _row(ctx: Context, cluster: Cluster, name: str, point: dict[str, str], args: Arguments) -> Row:
    words, tags = words_of(point)
    if stage := load_stage(Path(name), args, [*args.set, *words, *(f"launch.{tag}" for tag in tags)]):
        config = at_home(stage, cluster)
    else:
        config = load_train(Path(name), [*args.set, *words, *tags], args.program, plan_file(args.plan))
    refuse_detach(config, False)
    assign_ranks(subset(cluster, config.nodes), 0, config.nproc_per_node)
    refuse_no_script(config, name, ctx.workspace.root)
    return Row("", str(ctx.workspace.root), config.model_dump(mode="json"), name, point)


def _frozen(ctx: Context, rows: list[Row]) -> tuple[list[Row], list[Archive]]:
    """The rows with the code of this moment, which is read once for all that name the same files of it. Raises
    NexaError for what is not in it."""
    codes = dict[tuple[Any, ...], tuple[Archive, str | None]]()
    made = []
    for row in rows:
        config = recorded_train(row.config, row.config_file)
        key = (config.files, config.script, config.config)
        if key not in codes:
            code, _ = of_now(ctx, config)
            codes[key] = (code, commit(ctx, config, code))
        made.append(replace(row, code=codes[key][0].hash, git_commit=codes[key][1]))
    return made, list({code.hash: code for code, _ in codes.values()}.values())


def _of_grid(problem: Problem, point: dict[str, str]) -> Problem:
    """The same in the words that were given: `--grid` came as `--set`. An unknown key is one fault, not one a value."""
    key = problem.file.removeprefix("--set ").partition("=")[0]
    if not problem.file.startswith("--set ") or key not in point:
        return problem
    label = f"--grid {key}" if "unknown key" in problem.message else f"--grid {problem.file[6:]}"
    return replace(problem, file=label)
