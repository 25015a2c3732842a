"""nexa snapshot: what a cluster consists of, in one file; and what differs between two."""

from __future__ import annotations

from argparse import Namespace as Arguments
from dataclasses import asdict
from pathlib import Path

from nexa_dist.errors import EXIT_FAILED, EXIT_OK, UsageError
from nexa_dist.ops.cluster import snapshot as snapshots
from nexa_dist.ops.context import Context
from nexa_dist.plan.runs.snapshot import differences
from nexa_dist.run import files
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, find_cluster


def snapshot(args: Arguments) -> int:
    ctx = context(cluster=args.cluster, dry=args.dry_run)
    if args.action == "diff":
        return _diff(ctx, args)
    if args.snapshots:
        raise UsageError("nexa snapshot takes no file but after diff", hint="-o FILE says where it goes")
    if args.out and Path(args.out).is_dir():
        raise UsageError(f"{args.out} is a folder", hint="-o FILE says where it goes")
    cluster = find_cluster(ctx, args.cluster)
    names = ", ".join(node.name for node in cluster.nodes)
    if args.dry_run:
        ctx.say(f"would ask {names} for packages, driver, kernel and environment")
        ctx.say(f"would write: {args.out or snapshots.folder(ctx)}")
        return EXIT_OK
    with ctx.phase(f"snapshot of {len(cluster.nodes)} nodes"):
        made = snapshots.take(ctx, cluster)
        path = snapshots.keep(ctx, cluster, made)
        if args.out:
            files.write_json(Path(args.out), made)
    if args.json:
        terminal.emit(made)
    for name, facts in made["nodes"].items():
        driver = f", driver {facts['driver']}" if facts["driver"] else ""
        ctx.say(
            f"  {name}: {facts['system']}, kernel {facts['kernel']}{driver}, python {facts['python']}, "
            f"{len(facts['packages'])} packages of the system, {len(facts['freeze'])} of the environment"
        )
    ctx.say(f"✓ {made['sha256'][:16]} in {ctx.workspace.near(Path(args.out) if args.out else path)}")
    return EXIT_OK


def _diff(ctx: Context, args: Arguments) -> int:
    """Exit 1 when there is a difference, as diff does."""
    if len(args.snapshots) != 2 or args.out:
        raise UsageError("nexa snapshot diff takes two snapshots", hint="nexa snapshot diff A.json B.json")
    before, after = (snapshots.read(ctx, named) for named in args.snapshots)
    found = differences(before, after)
    if args.json:
        terminal.emit([asdict(one) for one in found])
    else:
        for one in found:
            terminal.out(terminal.plain(str(one)))
    if not found:
        terminal.say("the same")
    return EXIT_FAILED if found else EXIT_OK
