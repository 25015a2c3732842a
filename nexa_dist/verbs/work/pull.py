"""nexa pull: what a run made, brought here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_FAILED, EXIT_OK
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.come import lines
from nexa_dist.ops.work.pull import Answer, Wish
from nexa_dist.ops.work.pull import pull as pulled
from nexa_dist.ops.work.pulled import Pulled
from nexa_dist.ops.work.steps import wanted
from nexa_dist.plan.runs.results import counted, sized
from nexa_dist.run.workspace import RunFolder
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context


def pull(args: argparse.Namespace) -> int:
    ctx = context(acts=not args.dry_run, dry=args.dry_run)
    run = ctx.workspace.run(args.run)
    wish = Wish(Path(args.folder).absolute() if args.folder else run.path, wanted(args.checkpoint), args.all)
    answer = pulled(ctx, run, wish)
    for why in answer.silent.values():
        ctx.say(f"warning: not asked: {why}")
    (_would if args.dry_run else _say)(ctx, run, wish, answer)
    if args.json:
        terminal.emit(_told(run, wish, answer))
    if answer.why:
        terminal.error(answer.why, f"nexa pull {run.run_id} --checkpoint STEP names another one")
    elif nothing := bool(answer.silent) and not answer.found and not answer.fetched.here:
        terminal.error(f"nothing of {run.run_id} can be had", f"what came before is in {ctx.workspace.near(run.path)}")
    return EXIT_FAILED if answer.why or answer.fetched.failed or nothing else EXIT_OK


def _say(ctx: Context, run: RunFolder, wish: Wish, answer: Answer) -> None:
    if one := answer.checkpoint:
        ctx.say(f"checkpoint: step {one['step']} in {ctx.workspace.near(Path(one['path']))}, verified")
    elif not answer.why:
        ctx.say("checkpoint: none is known")
    if answer.result:
        ctx.say(f"result: {ctx.workspace.near(answer.result)}")
    for line in lines(ctx, run, answer.fetched, wish.folder):
        ctx.say(line)


def _would(ctx: Context, run: RunFolder, wish: Wish, answer: Answer) -> None:
    near = ctx.workspace.near(wish.folder)
    if answer.found:
        one = answer.found[0]
        size = f" ({sized(one.kept.bytes)})" if one.kept else ""
        ctx.say(f"would bring: the checkpoint of step {one.step} from {one.where}{size} to {near}/checkpoints")
    if run.load().cluster.bucket:
        ctx.say("would ask: the bucket for newer ones, and for outputs of nodes that are gone")
    rows = [one.row for one in answer.fetched.here]
    ctx.say(f"would bring: {counted(rows, names=True) if rows else 'no files'} to {near}/outputs")
    if answer.fetched.unnamed:
        ctx.say(f"would leave: {counted(answer.fetched.unnamed, names=True)}; --all brings it too")


def _told(run: RunFolder, wish: Wish, answer: Answer) -> dict[str, Any]:
    fetched, files = answer.fetched, Pulled.of(run).at(wish.folder).files
    return {
        "run": run.run_id,
        "folder": str(wish.folder),
        "checkpoint": answer.checkpoint,
        "steps": sorted({one.step for one in answer.found}),
        "files": [
            {"node": one.row.node, "name": one.row.name, "bytes": one.row.bytes,
             "path": str(wish.folder / "outputs" / known.into)}
            for one in fetched.here
            if (known := files.get(one.row.node, {}).get(one.row.name))
        ],
        "unnamed": {"count": len(fetched.unnamed), "bytes": sum(row.bytes for row in fetched.unnamed)},
        "failed": fetched.failed,
        "silent": answer.silent,
    }  # fmt: skip
