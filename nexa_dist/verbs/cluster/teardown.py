"""nexa teardown: a cluster destroyed, and the proof that nothing is left."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path

from nexa_dist.config.load import load_cluster
from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ops.cluster import dry_run
from nexa_dist.ops.cluster import teardown as destroying
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws import bucket as deleting
from nexa_dist.ops.providers.static import end as static_end
from nexa_dist.ops.providers.table import provider_of
from nexa_dist.ops.runs import stop as stopping
from nexa_dist.ops.work.at_stake import at_stake
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.traits import TRAITS
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import agreed, answered_yes
from nexa_dist.verbs._shared import context, find_folder, is_file


def teardown(args: Arguments) -> int:
    ctx = context(acts=not args.dry_run, cluster=args.cluster, dry=args.dry_run)
    if not args.cluster and not ctx.workspace.clusters():
        terminal.say(f"nothing to tear down in {ctx.workspace}")
        return EXIT_OK
    folder = find_folder(ctx, args.cluster)
    named = load_cluster(Path(args.cluster)) if args.cluster and is_file(args.cluster) else None
    doomed = destroying.doomed(ctx, folder, named)
    if doomed is None:
        if not args.dry_run:
            destroying.forget(folder)
        terminal.say(f"cluster {folder.name} was never made: nothing to tear down")
        return EXIT_OK
    if args.dry_run:
        for line in dry_run.teardown(ctx, doomed, args.without, delete_bucket=args.delete_bucket):
            ctx.say(line)
        for line in at_stake(ctx, folder, args.without).lines:
            ctx.say(f"would lose: {line}")
        return EXIT_OK
    if not args.keep_nothing:
        _refuse_loss(ctx, folder, args)
    if doomed.runs or doomed.elsewhere:
        agreed(args, f"destroy {doomed}?", f"{doomed} would be ended")
    if args.without:
        static_end.give_up(folder, args.without)
    scope, provider = doomed.scope, doomed.provider
    receipt = destroying.teardown(ctx, folder, scope, stopping.stop)
    for row in receipt["nodes"]:
        where = f"{row['id']} {row['offer']}: {row['state']}" if scope else f"{row['address']}:{row['port']}"
        terminal.say(f"  {'gone' if TRAITS[provider].makes else 'given back'}: {row['name']} {where}")
    cost = "cost unknown here" if receipt["cost_usd"] is None else f"{receipt['cost_usd']:.2f} USD"
    proof = provider_of(provider).proof(receipt)
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


def _refuse_loss(ctx: Context, folder: ClusterFolder, args: Arguments) -> None:
    """Asks before the only copy of something goes. Raises UsageError; -y alone is no answer to that."""
    found = at_stake(ctx, folder, args.without)
    for why in found.silent.values():
        ctx.say(f"warning: {why}")
    if not found.lines:
        return
    lost = "\n".join(f"  {line}" for line in found.lines)
    what = f"only on the nodes of {folder.name}:\n{lost}"
    if args.yes or not answered_yes(f"{what}\nlose it?"):
        named = found.runs[-1] if len(found.runs) == 1 else "RUN"
        raise UsageError(what, hint=f"nexa pull {named} --all brings it here; --keep-nothing gives it up")
