"""nexa sweep: what is yours in every region, and the end of orphans."""

from __future__ import annotations

from argparse import Namespace as Arguments

from nexa_dist.errors import EXIT_OK, StillRunning
from nexa_dist.ops.cluster import sweep as sweeping
from nexa_dist.ops.context import Context
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import agreed
from nexa_dist.verbs._shared import context


def sweep(args: Arguments) -> int:
    ctx = context(acts=args.delete, dry=args.dry_run)
    mine, found, silent = sweeping.survey(ctx, args.region, args.owner)
    kept, hidden = sweeping.images_kept(ctx, mine.owners, args.region)
    silent += hidden
    orphans = [entry for entry in found if entry.orphan]
    if args.json:
        rows = [entry.to_json() for entry in found]
        told = {"owner": mine.owners[0], "owners": mine.owners, "found": rows, "not_answered": silent}
        terminal.emit({**told, "not_looked_for": mine.unlooked})
    elif found:
        columns = ("cluster", "kind", "id", "region", "age_hours", "usd", "holder", "orphan")
        whose = ("owner",) if len(mine.owners) > 1 else ()
        terminal.table([entry.to_json() for entry in found], (*whose, *columns))
    terminal.say(f"owner {', '.join(mine.owners)}: {len(found)} resources, {len(orphans)} of them orphans")
    for line in (*mine.unlooked, "other owners (--owner NAME)"):
        terminal.say(f"  not looked for: {line}")
    for region, count, usd in kept:
        terminal.say(f"  and {count} baked images in {region}, at most {usd:.2f} USD a month (nexa image list)")
    for entry in orphans if args.delete and args.dry_run else ():
        ctx.say(f"would end: {entry.thing.kind} {entry.thing.id} in {entry.thing.region}")
    errors = _end(ctx, args, orphans) if orphans and args.delete and not args.dry_run else []
    if orphans and not args.delete:
        terminal.say("nexa sweep --delete ends the orphans; what another workspace holds is left alone")
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


def _end(ctx: Context, args: Arguments, orphans: list[sweeping.Found]) -> list[str]:
    """Answers what did not go."""
    agreed(args, f"end {len(orphans)} orphans?", f"{len(orphans)} orphans would be ended")
    errors = sweeping.end(ctx, orphans)
    if not errors:
        terminal.say(f"✓ {len(orphans)} orphans are gone")
    return errors
