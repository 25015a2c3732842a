"""nexa slurm submit: a training as a job of Slurm's, or an array of them."""

from __future__ import annotations

import dataclasses
from argparse import Namespace as Arguments
from pathlib import Path

from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import EXIT_OK, ConfigError, Problem, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.slurm.submit import Submitted, submit
from nexa_dist.plan.runs import grid
from nexa_dist.plan.slurm.array import array, elements
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context
from nexa_dist.verbs._training import plan_file, refuse_no_script, words_of


def slurm(args: Arguments) -> int:
    ctx = context(dry=args.dry_run)
    wanted, points = elements(array(args.array) if args.array else None, grid.points(args.grid))
    configs, problems = list[TrainConfig](), list[Problem]()
    for point in points:
        try:
            configs.append(_config(ctx, args, dict(point)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    made = submit(ctx, configs, wanted, points, args.train)
    _tell(ctx, made, args.json)
    return EXIT_OK


def _config(ctx: Context, args: Arguments, point: dict[str, str]) -> TrainConfig:
    words, tags = words_of(point)
    config = load_train(Path(args.train), [*args.set, *words, *tags], args.program, plan_file(args.plan))
    if config.slurm is None:
        raise UsageError(
            f"{args.train} has no section slurm",
            hint="slurm: {partition: gpu, nodes: 2, gres: 'gpu:4', time: '12:00:00'}",
        )
    refuse_no_script(config, args.train, ctx.workspace.root)
    return config


def _tell(ctx: Context, made: Submitted, as_json: bool) -> None:
    if as_json:
        told = dataclasses.asdict(made)
        terminal.emit({"job": told.pop("number") or None, **told})
        return
    if not made.number:
        terminal.out(made.script.rstrip())
        ctx.say(made.bill.words)
        ctx.say(made.begins)
        return
    ctx.say(made.bill.words)
    ctx.say(f"✓ job {made.number} is in the queue: {', '.join(made.runs)}")
    if (waiting := made.waiting) and waiting.state == "PENDING":
        start = f", expected to begin {waiting.start}" if waiting.start else ""
        reason = f" ({waiting.reason})" if waiting.reason not in ("", "None") else ""
        ctx.say(f"  it waits{reason}{start}")
    ctx.say(f"  squeue -j {made.number} · nexa runs, logs, why · scancel {made.number} ends it")
