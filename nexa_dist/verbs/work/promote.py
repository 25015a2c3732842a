"""nexa promote: a model gets the name staging or production when its scores and a smoke request say so."""

from __future__ import annotations

from argparse import Namespace as Arguments
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_OK, NexaError, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.serving import aliases, served
from nexa_dist.ops.serving.aliases import NAMES, Aliases, Promotion
from nexa_dist.ops.serving.served import Wish
from nexa_dist.ops.serving.tunnel import Tunnel, ask
from nexa_dist.ops.work.steps import wanted
from nexa_dist.run import files
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context


def promote(args: Arguments) -> int:
    ctx = context(acts=not args.list, dry=args.dry_run)
    names = Aliases(ctx.workspace.root)
    if args.list:
        return _list(names, args.json)
    if not args.to:
        raise UsageError("promote to what?", hint="--to staging or --to production")
    if args.rollback:
        before = names.before(args.to)
        facts = {name: getattr(before, name) for name in ("wanted", "most", "scores", "smoke", "evaluation")}
        made = aliases.made(args.to, before.run, before.step, before.sha256, why="rollback", **facts)
    else:
        made = _judged(ctx, args)
    word = "would be" if ctx.dry else "is"
    if not ctx.dry:
        names.give(made)
    ctx.say(f"✓ {made.alias} {word} {made.run}, step {made.step} ({made.why}, {made.by})")
    if args.json:
        terminal.emit(asdict(made))
    return EXIT_OK


def _judged(ctx: Context, args: Arguments) -> Promotion:
    """The promotion, if nothing keeps the model from it. Raises NexaError with all that does."""
    least, most = aliases.thresholds(args.min), aliases.thresholds(args.max, "--max")
    if not args.run:
        raise UsageError("promote which run?", hint="nexa promote RUN --to staging --min DSS=0.6")
    if not least and not most:
        hint = "--min NAME=NUMBER or --max NAME=NUMBER, of its evaluation's scores"
        raise UsageError("nothing is asked of the model", hint=hint)
    step = wanted(args.checkpoint)
    if step is not None and not args.eval:
        hint = "--eval FILE names those of this step; without --checkpoint the newest is promoted"
        raise UsageError(f"nobody says that the scores of {args.run} are of step {step}", hint=hint)
    run = ctx.workspace.run(args.run)
    path = aliases.evaluation_of(ctx.workspace.root, run.run_id, args.eval)
    scores = aliases.scores_in(files.read_json(path))
    faults = aliases.missed(least, scores, most)
    model = served.find_model(ctx, Wish(run.run_id, step))
    smoke = _smoke(ctx, run.run_id, model.step)
    if smoke is None:
        faults.append("smoke: no server of this checkpoint is there to be asked")
    if faults:
        raise NexaError(
            f"{run.run_id} is not promoted to {args.to}:\n" + "\n".join(faults),
            hint=f"scores of {ctx.workspace.near(Path(path))}; nexa serve {run.run_id} asks the smoke request",
        )
    return aliases.made(
        args.to, run.run_id, model.step or 0, model.sha256, why="promote", wanted=least, most=most,
        scores={name: scores[name] for name in (*least, *most)}, smoke=smoke,
        evaluation=str(ctx.workspace.near(Path(path))),
    )  # fmt: skip


def _smoke(ctx: Context, run: str, step: int | None) -> dict[str, Any] | None:
    """What a server of this checkpoint answers now; None where there is no such server. Raises NexaError when it does
    not answer."""
    for folder in served.served(ctx):
        record = folder.load()
        if served.what_is_served(record) != (run, step):
            continue
        tunnel = Tunnel(ctx, 0)
        with served.linked(ctx, record) as link:
            state = served.state_of(link, record.run_dir(link.node.name)) or {}
            if state.get("state") == "ready" and not state.get("has_key"):
                try:
                    tunnel.lead_to(link, state)
                    return {"run": folder.run_id, **ask(tunnel.url, state["model"], state["api"], "")}
                finally:
                    tunnel.close()
            if state.get("state") == "ready":  # without its key, its own request has to do
                return {"run": folder.run_id, **state["smoke"]}
    return None


def _list(names: Aliases, as_json: bool) -> int:
    rows = [one for alias in NAMES if (one := names.get(alias))]
    if as_json:
        terminal.emit([asdict(one) for one in rows])
    for one in () if as_json else rows:
        scores = ", ".join(f"{name} {value:g}" for name, value in one.scores.items())
        terminal.out(f"{one.alias}\t{one.run}\tstep {one.step}\t{one.why} by {one.by}\t{scores}")
    return EXIT_OK
