"""nexa image bake, list, delete: machine images of nodes that are set up."""

from __future__ import annotations

import argparse
from pathlib import Path

from nexa_dist import ui
from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ops import image as baking
from nexa_dist.ops import plan as planning
from nexa_dist.verbs.cloud import show
from nexa_dist.verbs.common import context, load_said

Arguments = argparse.Namespace
COLUMNS = ("id", "state", "age_hours", "gb", "usd_per_month", "env", "base")


def image(args: Arguments) -> int:
    verb = {"bake": _bake, "list": _list, "delete": _delete}[args.action]
    return verb(args)


def _bake(args: Arguments) -> int:
    ctx = context()
    if not args.cluster:
        raise UsageError("nexa image bake needs --cluster FILE: what the node is rented as")
    config = load_said(Path(args.cluster))
    seen = planning.preview(ctx, baking.wanted(config))
    if seen:
        show(seen)
        if not args.yes and not (ui.interactive() and ui.confirm("rent one node, make an image of it, give it back?")):
            raise UsageError("one node would be rented for the image", hint="-y says yes")
    made = baking.bake(ctx, config)
    ui.say(f"✓ {made['image']['id']}: provision takes it from here on for files without `ami`")
    if args.json:
        ui.emit(made)
    return EXIT_OK


def _list(args: Arguments) -> int:
    rows = baking.listed(context(), load_said(Path(args.cluster)) if args.cluster else None, args.region)
    if args.json:
        ui.emit(rows)
    else:
        ui.table(rows, COLUMNS)
        ui.say(f"{len(rows)} images, at most {sum(row['usd_per_month'] for row in rows):.2f} USD a month")
    return EXIT_OK


def _delete(args: Arguments) -> int:
    context()
    if not args.image:
        raise UsageError("nexa image delete needs the image's id", hint="nexa image list")
    if not args.yes and not (ui.interactive() and ui.confirm(f"delete {args.image} and its snapshots?")):
        raise UsageError(f"{args.image} and its snapshots would be deleted", hint="-y says yes")
    baking.delete(load_said(Path(args.cluster)) if args.cluster else None, args.region, args.image)
    ui.say(f"✓ {args.image} is gone")
    return EXIT_OK
