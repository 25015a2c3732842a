"""nexa budget: what may be spent on a cluster, what is, and more of it."""

from __future__ import annotations

import math
from argparse import Namespace as Arguments

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ops.money.budget import of_cluster
from nexa_dist.ops.money.meter import extend
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, find_folder


def budget(args: Arguments) -> int:
    ctx = context(acts=args.action == "extend", cluster=args.cluster, dry=args.dry_run)
    folder = find_folder(ctx, args.cluster)
    if args.action == "extend":
        if args.usd is None or not math.isfinite(args.usd) or args.usd <= 0:
            raise UsageError("nexa budget extend takes an amount above 0", hint="nexa budget extend 25 adds 25 USD")
        if not args.dry_run:
            extend(ctx, folder, args.usd)
    found = of_cluster(folder, ctx.now(), 0.0)
    if found is None:
        raise UsageError(f"cluster {folder.name} has no budget", hint="budget_usd in its file gives it one")
    if args.action and args.dry_run:
        names = ", ".join(node.name for node in folder.load().nodes)
        ctx.say(f"would raise the budget of {folder.name} to {found.budget_usd + args.usd:.2f} USD")
        ctx.say(f"would move the deadlines of {names}, and of runs that nobody follows")
    hours = found.seconds_left() / 3600
    if args.json:
        left_h = None if math.isinf(hours) else round(hours, 4)
        terminal.emit({
            "cluster": folder.name, "budget_usd": found.budget_usd, "spent_usd": round(found.spent_usd, 6),
            "usd_per_hour": round(found.usd_per_hour, 6), "hours_left": left_h,
        })  # fmt: skip
        return EXIT_OK
    left = "" if math.isinf(hours) else f", {max(0.0, hours):.1f} h at {found.usd_per_hour:.2f} USD/h"
    terminal.say(f"{folder.name}: {found.spent_usd:.2f} of {found.budget_usd:.2f} USD spent{left}")
    return EXIT_OK
