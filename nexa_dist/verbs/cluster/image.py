"""nexa image bake, list, delete: machine images of nodes that are set up."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ops.cluster import dry_run
from nexa_dist.ops.cluster import image as baking
from nexa_dist.ops.cluster import plan as planning
from nexa_dist.ops.runs.stop import stop
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import agreed
from nexa_dist.verbs._shared import context, load_said
from nexa_dist.verbs.cluster.plan import show

COLUMNS = ("id", "state", "age_hours", "gb", "usd_per_month", "env", "base")


def image(args: Arguments) -> int:
    verb = {"bake": _bake, "list": _list, "delete": _delete}[args.action]
    return verb(args)


def _bake(args: Arguments) -> int:
    ctx = context(dry=args.dry_run)
    if not args.cluster:
        raise UsageError("nexa image bake needs --cluster FILE: what the node is rented as")
    config = load_said(Path(args.cluster))
    if args.dry_run:
        one = baking.wanted(config)
        show(planning.offline(ctx, one))
        for line in (*dry_run.provision(ctx, one), "would make: an image of that node", f"would destroy: {one.name}"):
            ctx.say(line)
        return EXIT_OK
    seen = planning.preview(ctx, baking.wanted(config))
    if seen:
        show(seen)
        agreed(args, "rent one node, make an image of it, give it back?", "one node would be rented for the image")
    made = baking.bake(ctx, config, stop)
    terminal.say(f"✓ {made['image']['id']}: provision takes it from here on for files without `ami`")
    if args.json:
        terminal.emit(made)
    return EXIT_OK


def _list(args: Arguments) -> int:
    rows = baking.listed(context(), load_said(Path(args.cluster)) if args.cluster else None, args.region)
    if args.json:
        terminal.emit(rows)
    else:
        terminal.table(rows, COLUMNS)
        terminal.say(f"{len(rows)} images, at most {sum(row['usd_per_month'] for row in rows):.2f} USD a month")
    return EXIT_OK


def _delete(args: Arguments) -> int:
    ctx = context(dry=args.dry_run)
    if not args.image:
        raise UsageError("nexa image delete needs the image's id", hint="nexa image list")
    doomed, config = f"{args.image} and its snapshots", load_said(Path(args.cluster)) if args.cluster else None
    if args.dry_run:
        region, found = baking.find(config, args.region, args.image)
        ctx.say(f"would delete in {region}: {', '.join((found.id, *found.snapshots))}")
        return EXIT_OK
    agreed(args, f"delete {doomed}?", f"{doomed} would be deleted")
    baking.delete(config, args.region, args.image)
    terminal.say(f"✓ {args.image} is gone")
    return EXIT_OK
