"""nexa pipeline run, status: stages of a pipeline one after the other, those alone that are not done."""

from __future__ import annotations

from argparse import Namespace as Arguments
from collections.abc import Sequence
from pathlib import Path

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.pipeline import chain
from nexa_dist.ops.pipeline.chain import Step
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context

COLUMNS = ("stage", "kind", "state", "version", "seconds", "usd")


def pipeline(args: Arguments) -> int:
    if args.action == "status" and args.dry_run:
        raise UsageError("--dry-run belongs to nexa pipeline run", hint="nexa pipeline status changes nothing")
    ctx = context(acts=args.action == "run", dry=args.dry_run)
    config = chain.load(Path(args.file))
    if args.action == "status" or args.dry_run:
        steps = chain.look(ctx.workspace.root, config)
        _shown(ctx, steps, args.json)
        for step in steps if args.dry_run else ():
            if not step.version:
                place = "after " + ", ".join(step.waits) if step.waits else step.where
                ctx.say(f"would run: {step.name} {place}: {step.stage} of {step.config}")
        if args.dry_run and config.promote:
            ctx.say(f"would give the name {config.promote.to} to what {config.promote.evaluation} is of, if it has not")
        return EXIT_OK
    if any(step.where == "cluster" for step in config.stages.values()) and not (args.cluster or config.cluster):
        if any(step.where == "cluster" and not step.version for step in chain.look(ctx.workspace.root, config)):
            ctx.workspace.only_cluster()  # said before anything is done

    def on_cluster(step: Step, folder: Path) -> int:
        from nexa_dist.verbs.pipeline.on_cluster import done  # what starts runs is of no use to stages here

        return done(ctx, args.cluster or config.cluster, step, folder)

    code, steps = chain.run(ctx, config, on_cluster)
    _shown(ctx, steps, args.json)
    return code


def _shown(ctx: Context, steps: Sequence[Step], as_json: bool) -> None:
    rows, sums = [step.row(ctx.workspace.root) for step in steps], chain.total(steps)
    if as_json:
        terminal.emit({"stages": rows, "total": sums})
        return
    terminal.table(rows, COLUMNS)
    terminal.say(f"together: {sums['seconds']:.1f} s, {sums['usd']:.4f} USD of what is done")
