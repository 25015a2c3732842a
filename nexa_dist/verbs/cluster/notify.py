"""nexa notify: what a run could not tell is sent, or a test."""

from __future__ import annotations

import contextlib
from argparse import Namespace as Arguments
from collections.abc import Sequence
from typing import Any

from nexa_dist.errors import EXIT_FAILED, EXIT_OK, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.notify import targets, trial
from nexa_dist.ops.notify.outbox import Letter, Outbox
from nexa_dist.ops.notify.targets import Target
from nexa_dist.plan.runs.notification import Message
from nexa_dist.run import files
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import consent_to_commands
from nexa_dist.verbs._shared import context, find_cluster, find_folder, is_file, name_of

COLUMNS = ("event", "from", "to", "state", "why")


def notify(args: Arguments) -> int:
    ctx = context(cluster=args.cluster, dry=args.dry_run)
    if args.test and args.run:
        raise UsageError("--test is of a cluster, not of a run", hint="nexa notify --test --cluster NAME|FILE")
    if args.cluster and not args.test:
        raise UsageError("--cluster is for --test", hint="nexa notify RUN sends what that run could not tell")
    if args.from_nodes and not args.test:
        raise UsageError("--from-nodes is for --test", hint="nexa notify --test --from-nodes --cluster NAME|FILE")
    rows = _test(ctx, args) if args.test else _unsent(ctx, args)
    if args.json:
        terminal.emit(rows)
    else:
        for row in rows:
            terminal.out("\t".join(terminal.plain(str(row[key])) for key in COLUMNS))
    return EXIT_FAILED if any(row["state"] == "failed" for row in rows) else EXIT_OK


def _test(ctx: Context, args: Arguments) -> list[dict[str, Any]]:
    name = name_of(args.cluster) if args.cluster and is_file(args.cluster) else find_folder(ctx, args.cluster).name
    rows = targets.of_cluster(ctx, name, args.cluster)
    if not rows:
        raise UsageError(f"cluster {name} has no notify", hint="docs/NOTIFY.md says what it may be")
    if not ctx.dry:
        consent_to_commands(ctx, rows)
    found = targets.resolved(ctx, [row.model_dump(mode="json", exclude_none=True) for row in rows])
    allowed = [target for target in found if target.row.get("from_nodes")]
    if args.from_nodes and not allowed:
        raise UsageError("no entry of notify has from_nodes: true", hint="only then do nodes learn its address")
    cluster = find_cluster(ctx, args.cluster) if args.from_nodes else None
    text, key = f"a test from nexa: messages about runs on {name} arrive", f"test:{ctx.now():.3f}"
    message = Message(key, "test", text, cluster=name, at=ctx.now(), next="nexa status").to_json()
    told = [_told(ctx, Letter(key, target, message)) for target in found]
    return told + (_from_nodes(ctx, cluster, allowed, message) if cluster else [])


def _from_nodes(
    ctx: Context, cluster: Cluster, allowed: Sequence[Target], message: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of each node; of an address that is not known here they have said so before."""
    row = {"event": "test", "state": "would send", "why": "as an agent would"}
    if ctx.dry:
        return [{**row, "from": node.name, "to": target.name} for node in cluster.nodes for target in allowed]
    known = [target for target in allowed if target.url]
    return [
        {**row, "from": node, "to": target.name, "state": "sent" if answer.sent else "failed", "why": answer.why}
        for node, answers in trial.send(ctx, cluster, known, message)
        for target, answer in zip(known, answers, strict=True)
    ]


def _unsent(ctx: Context, args: Arguments) -> list[dict[str, Any]]:
    run = ctx.workspace.run(args.run)
    if run.supervised:
        raise UsageError(f"{run.run_id} is in the hands of another nexa, which sends its messages", hint="nexa status")
    alone = contextlib.nullcontext() if ctx.dry else files.locked(run.path / "notify" / "lock", "notify")
    with alone:  # two at once would send all of it twice
        outbox = Outbox(run, targets.of_run(ctx, run), ctx.runner, begin=False)
        left = outbox.unsent()
        if not left:
            told = len(outbox.marks.messages)
            terminal.say(f"{run.run_id}: nothing waits" + (f"; {told} messages were sent" if told else ""))
        return [_told(ctx, letter, outbox) for letter in left]


def _told(ctx: Context, letter: Letter, outbox: Outbox | None = None) -> dict[str, Any]:
    row = {"event": letter.message["event"], "from": "nexa", "to": letter.target.name, "state": "would send", "why": ""}
    if ctx.dry:
        return {**row, "why": letter.target.missing or letter.message["text"]}
    answer = outbox.attempt(letter) if outbox else letter.target.send(ctx.runner, letter.message)
    return {**row, "state": "sent" if answer.sent else "failed", "why": answer.why}
