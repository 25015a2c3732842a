"""nexa teardown: a cluster destroyed, and the proof that nothing is left."""

from __future__ import annotations

import argparse
from pathlib import Path

from nexa_dist.config.load import load_cluster
from nexa_dist.errors import EXIT_OK, NexaError, StillRunning, UsageError
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.cluster import provision as provisioning
from nexa_dist.ops.cluster import teardown as destroying
from nexa_dist.ops.providers.aws import bucket as deleting
from nexa_dist.ops.providers.aws import end as ending
from nexa_dist.ops.providers.static import end as static_end
from nexa_dist.ops.providers.static.record import Record
from nexa_dist.ops.runs import stop as stopping
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, find_folder, is_file

Arguments = argparse.Namespace


def teardown(args: Arguments) -> int:
    ctx = context(acts=not args.dry_run, cluster=args.cluster)
    if not args.cluster and not ctx.workspace.clusters():
        terminal.say(f"nothing to tear down in {ctx.workspace}")
        return EXIT_OK
    folder, config = find_folder(ctx, args.cluster), None
    if args.cluster and is_file(args.cluster):
        config = load_cluster(Path(args.cluster))
        if folder.may_exist():
            provisioning.refuse_other_provider(folder, config)
    own = Record.exists(folder)
    try:
        scope = ending.site_of(ctx, folder, config)
        elsewhere = ending.holder_elsewhere(ctx, scope) if scope else ""
    except UsageError:
        raise
    except NexaError as error:
        raise StillRunning(f"what is left of {folder.name} cannot be told: {error}", hint=error.hint) from error
    if not scope and not folder.may_exist():
        destroying.forget(folder)
        terminal.say(f"cluster {folder.name} was never made: nothing to tear down")
        return EXIT_OK
    active = active_runs(ctx, folder.name)
    doomed = f"cluster {folder.name}"
    doomed += f", held by {elsewhere}," if elsewhere else ""
    doomed += f" and the active runs {', '.join(r.run_id for r in active)}" if active else ""
    if args.dry_run:
        terminal.say(f"would destroy {doomed}")
        return EXIT_OK
    if (
        (active or elsewhere)
        and not args.yes
        and not (terminal.interactive() and terminal.confirm(f"destroy {doomed}?"))
    ):
        raise UsageError(f"{doomed} would be ended", hint="-y says yes")
    if args.without:
        static_end.give_up(folder, args.without)
    receipt = destroying.teardown(ctx, folder, scope, stopping.stop)
    for row in receipt["nodes"]:
        where = f"{row['id']} {row['offer']}: {row['state']}" if scope else f"{row['address']}:{row['port']}"
        terminal.say(f"  {'given back' if own else 'gone'}: {row['name']} {where}")
    cost = "cost unknown here" if receipt["cost_usd"] is None else f"{receipt['cost_usd']:.2f} USD"
    proof = (
        f"{len(receipt['resources'])} resources confirmed gone"
        if scope
        else f"{sum(map(len, receipt['removed'].values()))} things removed, 0 processes left"
        if own
        else "0 resources, 0 processes, 0 listening ports left"
    )
    terminal.say(f"✓ cluster {folder.name} is gone: {proof}; {cost}")
    if scope and args.delete_bucket and scope.bucket:
        deleting.delete(ctx, scope.bucket)
        terminal.say(f"  bucket {scope.bucket} is gone with all that was in it")
    else:
        for kept in receipt.get("kept", ()):
            terminal.say(f"  kept: {kept}")
    terminal.say(f"  receipt {ctx.workspace.near(ctx.workspace.root / receipt['receipt'])}")
    for line in receipt["waste"]["lines"] if receipt["cost_usd"] else ():
        terminal.say(f"  {line}")
    if args.json:
        terminal.emit(receipt)
    return EXIT_OK
