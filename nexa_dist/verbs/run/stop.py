"""nexa stop: a run ended on every node."""

from __future__ import annotations

from argparse import Namespace as Arguments

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import stop as stopping
from nexa_dist.run.workspace import RunFolder
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context


def stop(args: Arguments) -> int:
    ctx = context(dry=args.dry_run)
    if args.run == "":  # an unset variable of a script must not stop whatever is there
        raise UsageError("nexa stop '' names no run", hint="nexa runs lists them")
    run = ctx.workspace.run(args.run) if args.run else _only_active(ctx)
    if args.dry_run:
        ctx.say(f"would end {run.run_id} on {', '.join(run.load().nodes)}, with {args.grace:.0f} s for a checkpoint")
        return EXIT_OK
    if run.load().cluster.traits.by_job:
        return _job(ctx, run, args.json)
    answer = stopping.stop(ctx, run, args.grace)
    ended = ", ".join(f"{node} {count}" for node, count in answer["ended"].items())
    known = answer["state"] != "stopping"
    ctx.say(f"{'✓' if known else '·'} {answer['run']} {answer['state']}; processes ended: {ended}; left: 0")
    if not known:
        ctx.say(f"  the nexa that supervises it has not written its end yet: nexa attach {answer['run']} shows it")
    if args.json:
        terminal.emit(answer)
    return EXIT_OK


def _job(ctx: Context, run: RunFolder, as_json: bool) -> int:
    """Its job ends, with the time for a checkpoint that Slurm gives."""
    from nexa_dist.ops.slurm import stop as of_slurm

    answer = of_slurm.stop(ctx, run)
    ctx.say(f"✓ {answer['run']} {answer['state']}; job {answer['job']} was {answer['was']}, and is in no queue")
    if as_json:
        terminal.emit(answer)
    return EXIT_OK


def _only_active(ctx: Context) -> RunFolder:
    """The one run that goes on. Raises UsageError when there is none or a choice."""
    found = active_runs(ctx)
    if len(found) != 1:
        names = ", ".join(run.run_id for run in found)
        raise UsageError(
            f"which run? {names}" if found else f"no run goes on in {ctx.workspace}", hint="nexa runs lists them"
        )
    ctx.say(f"{found[0].run_id} is the only run that goes on{'' if ctx.dry else ': stopping it'}")
    return found[0]
