"""nexa plan: what would be made, where and for how much."""

from __future__ import annotations

import datetime
from argparse import Namespace as Arguments
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import EXIT_FAILED, EXIT_OK, UsageError
from nexa_dist.ops.cluster import plan as planning
from nexa_dist.ops.cluster.plan import Preview
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws import prices
from nexa_dist.plan.money.estimate import useful_hours
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import consent_to_stack
from nexa_dist.verbs._shared import context, load_said

SHOWN = 8


def show(seen: Preview) -> None:
    """The offers in the order in which they are tried, and what the first of them costs."""
    rows = [
        {
            "#": str(place),
            "offer": candidate.title,
            "USD/h a node": f"{candidate.usd_per_hour:.2f}",
            "on demand": "?" if (listed := seen.on_demand.get(candidate.type)) is None else f"{listed:.2f}",
            "a GPU": f"{candidate.usd_per_gpu_hour:.3f}",
            "why": why,
        }
        for place, (candidate, why) in enumerate(seen.offers[:SHOWN], 1)
    ]
    terminal.talk_table(rows, ("#", "offer", "USD/h a node", "on demand", "a GPU", "why"))
    if len(seen.offers) > SHOWN:
        terminal.say(f"  and {len(seen.offers) - SHOWN} more")
    for line in seen.dropped[:SHOWN]:
        terminal.say(f"  left out: {line}")
    for line in seen.not_asked:
        terminal.say(f"  not looked at, so AWS may still refuse it: {line}")
    for line in bill_lines(seen):
        terminal.say(line)


def bill_lines(seen: Preview) -> list[str]:
    """The bill before anything is spent."""
    bill, book = seen.bill, prices.book()
    ends = "the budget or its deadline ends each node" if seen.budget_usd else "its deadline ends each node"
    lines = [
        f"{seen.nodes} nodes: {seen.usd_per_hour:.2f} USD/h with the first, "
        f"and {seen.rates.around:.2f} USD/h for disks and addresses",
        f"  at least {bill.minimum_usd:.2f} USD, {bill.expected_usd:.2f} USD if used to the end, "
        f"at worst {bill.worst_usd:.2f} USD" + (f" of a budget of {seen.budget_usd:.2f}" if seen.budget_usd else ""),
        f"  {ends} after {bill.stops_h:.1f} h, whatever happens here; "
        f"{useful_hours(bill):.1f} h of them to train ({bill.assumed})",
        f"  on-demand prices of {book.as_of} ({prices.age_days(datetime.date.today())} days old); "
        f"{bill.egress_usd:.2f} USD of it for logs sent here, nothing for what your code sends elsewhere",
    ]
    if seen.unknown:
        lines.append(f"  not counted either, since no price is known here: {', '.join(seen.unknown)}")
    return [*lines, *(f"  {note}" for note in seen.notes)]


def show_changes(report: Mapping[str, Any]) -> None:
    """Show what Terraform would do, and what nobody may overlook about it."""
    for what, addresses in report["changes"].items():
        terminal.say(f"  {what}: {len(addresses)} resources")
    if not report["changes"]:
        terminal.say("  no changes")
    if "alarm" in report:
        terminal.alarm(report["alarm"])


def _fit(ctx: Context, train: str, config: ClusterConfig) -> dict[str, Any]:
    """Shows whether a training fits the offers of the file, and what would; as data, `refused` where it does not."""
    from nexa_dist.config.load import load_train
    from nexa_dist.ops.fit.preflight import preflight
    from nexa_dist.verbs.run.preflight import show as show_fit
    from nexa_dist.verbs.run.preflight import to_json

    seen = preflight(ctx, load_train(Path(train)), config)
    show_fit(seen)
    return to_json(seen)


def plan(args: Arguments) -> int:
    ctx = context()
    config = load_said(Path(args.cluster), args.set)
    fit = {"fit": _fit(ctx, args.train, config)} if args.train else {}
    if fit and fit["fit"]["refused"]:
        if args.json:
            terminal.emit({"cluster": config.name, "provider": config.provider, **fit})
        return EXIT_FAILED
    if args.offline:
        if args.out:
            raise UsageError("a plan is saved online only", hint="leave -o, or --offline")
        guess = planning.offline(ctx, config)
        show(guess)
        terminal.say("  offline: nobody was asked, so nothing was planned")
        if args.json:
            told = {"cluster": config.name, "provider": config.provider, "offline": True}
            terminal.emit({**told, **guess.to_json(), **fit})
        return EXIT_OK
    seen = planning.preview(ctx, config)
    if seen:
        show(seen)
    consent_to_stack(config)
    report = planning.plan(ctx, config, Path(args.out) if args.out else None)
    show_changes(report)
    if args.out:
        terminal.say(f"saved {args.out}; nexa provision --plan {args.out} applies exactly that")
    if args.json:
        terminal.emit({**report, **fit})
    return EXIT_OK
