"""plan, sweep, timeline: what is asked before, after and about a cluster."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

from nexa_dist import ui
from nexa_dist.config.load import load_cluster
from nexa_dist.errors import EXIT_OK, NexaError, StillRunning, UsageError
from nexa_dist.ops import plan as planning
from nexa_dist.ops import sweep as sweeping
from nexa_dist.ops.context import Context
from nexa_dist.ops.plan import Preview
from nexa_dist.ops.timeline import timeline as steps_of
from nexa_dist.plan import prices
from nexa_dist.plan.estimate import useful_hours
from nexa_dist.run import files
from nexa_dist.verbs.common import context, is_file, load_said

Arguments = argparse.Namespace
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
    ui.talk_table(rows, ("#", "offer", "USD/h a node", "on demand", "a GPU", "why"))
    if len(seen.offers) > SHOWN:
        ui.say(f"  and {len(seen.offers) - SHOWN} more")
    for line in seen.dropped[:SHOWN]:
        ui.say(f"  left out: {line}")
    for line in seen.not_asked:
        ui.say(f"  not looked at, so AWS may still refuse it: {line}")
    for line in bill_lines(seen):
        ui.say(line)


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


def plan(args: Arguments) -> int:
    ctx = context()
    config = load_said(Path(args.cluster), args.set)
    if args.offline:
        if args.out:
            raise UsageError("a plan is saved online only", hint="leave -o, or --offline")
        guess = planning.offline(ctx, config)
        show(guess)
        ui.say("  offline: nobody was asked, so nothing was planned")
        if args.json:
            ui.emit({"cluster": config.name, "provider": config.provider, "offline": True, **guess.to_json()})
        return EXIT_OK
    seen = planning.preview(ctx, config)
    if seen:
        show(seen)
    report = planning.plan(ctx, config, Path(args.out) if args.out else None)
    for what, addresses in report["changes"].items():
        ui.say(f"  {what}: {len(addresses)} resources")
    if not report["changes"]:
        ui.say("  no changes")
    if args.out:
        ui.say(f"saved {args.out}; nexa provision --plan {args.out} applies exactly that")
    if args.json:
        ui.emit(report)
    return EXIT_OK


def sweep(args: Arguments) -> int:
    ctx = context(acts=args.delete)
    mine, found, silent = sweeping.survey(ctx, args.region, args.owner)
    kept, hidden = sweeping.images_kept(ctx, mine.owners, args.region)
    silent += hidden
    orphans = [entry for entry in found if entry.orphan]
    if args.json:
        rows = [entry.to_json() for entry in found]
        told = {"owner": mine.owners[0], "owners": mine.owners, "found": rows, "not_answered": silent}
        ui.emit({**told, "not_looked_for": mine.unlooked})
    elif found:
        columns = ("cluster", "kind", "id", "region", "age_hours", "usd", "holder", "orphan")
        whose = ("owner",) if len(mine.owners) > 1 else ()
        ui.table([entry.to_json() for entry in found], (*whose, *columns))
    ui.say(f"owner {', '.join(mine.owners)}: {len(found)} resources, {len(orphans)} of them orphans")
    for line in (*mine.unlooked, "other owners (--owner NAME)"):
        ui.say(f"  not looked for: {line}")
    for region, count, usd in kept:
        ui.say(f"  and {count} baked images in {region}, at most {usd:.2f} USD a month (nexa image list)")
    errors = _end(ctx, orphans, args.yes) if orphans and args.delete else []
    if orphans and not args.delete:
        ui.say("nexa sweep --delete ends the orphans; what another workspace holds is left alone")
    said = [f"not everything is gone: {'; '.join(errors)}"] if errors else []
    said += [f"not everything could be seen: {'; '.join(silent)}"] if silent else []
    if said:
        raise StillRunning(
            "\n".join(said),
            hint="docs/IAM.md lists the rights; --region asks only where you have them"
            if silent
            else "run nexa sweep --delete again",
        )
    return EXIT_OK


def _end(ctx: Context, orphans: list[sweeping.Found], yes: bool) -> list[str]:
    """Answers what did not go."""
    if not yes and not (ui.interactive() and ui.confirm(f"end {len(orphans)} orphans?")):
        raise UsageError(f"{len(orphans)} orphans would be ended", hint="-y says yes")
    errors = sweeping.end(ctx, orphans)
    if not errors:
        ui.say(f"✓ {len(orphans)} orphans are gone")
    return errors


def timeline(args: Arguments) -> int:
    ctx = context(acts=False, cluster=args.cluster)
    folder = _folder(ctx.workspace.root, args.cluster)
    rows: list[dict[str, Any]] = steps_of(files.read_lines(folder / "journal.jsonl"))
    if args.json:
        ui.emit(rows)
    else:
        ui.table(rows, ("step", "at_s", "seconds", "state", "what"))
    return EXIT_OK


def _folder(root: Path, named: str | None) -> Path:
    """Of a cluster that is there, else of the newest one of that name that was torn down."""
    stem = named or ""
    if is_file(stem):
        stem = load_cluster(Path(stem)).name
    there = sorted((root / ".nexa" / "clusters").glob(f"{stem or '*'}/journal.jsonl"))
    gone = sorted((root / ".nexa" / "history").glob(f"{stem or '*'}_*/journal.jsonl"), key=lambda p: p.stat().st_mtime)
    if not there and not gone:
        raise NexaError(f"no cluster {stem} is known in {root}".replace("  ", " "), hint="nexa status lists them")
    return (there or gone)[-1].parent
