"""nexa sweep: everything of yours in every region, and which of it nobody will ever end."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws.owners import Whose, whose
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.aws import prices
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import end_tagged, tagged
from nexa_dist.run.aws import images as aws_images
from nexa_dist.run.aws.denied import denied_action, in_short
from nexa_dist.run.aws.tagged import EXPIRES, WORKSPACE, TaggedResource


@dataclass(frozen=True)
class Found:
    """One thing, whose it is, and what it has cost so far (None: no price is known)."""

    thing: TaggedResource
    holder: str
    orphan: bool
    age_hours: float | None
    usd: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.thing.to_json(),
            "cluster": self.thing.cluster,
            "owner": self.thing.tags.get(tagged.OWNER, ""),
            "offer": self.thing.offer,
            "holder": self.holder,
            "orphan": self.orphan,
            "age_hours": self.age_hours,
            "usd": self.usd,
        }


def survey(ctx: Context, only: Sequence[str] = (), named: Sequence[str] = ()) -> tuple[Whose, list[Found], list[str]]:
    """Survey (the owners, every resource that carries one of their tags (those `named`, else all of `whose`) in every
    region (or `only` some), and what could not be seen."""
    home = _home(only)
    mine = whose(ctx, aws_client.identity(home), only, named)
    regions, silent = regions_of(ctx, only)
    unseen: list[tuple[str, str, str]] = []

    def ask(region: str) -> list[TaggedResource]:
        kinds = tagged.ALL if region == home else tagged.EC2  # IAM answers the same in every region
        try:
            looks = [tagged.look(region, owner, None, kinds) for owner in mine.owners]
        except NexaError as error:  # one region that is denied or away must not hide the others
            unseen.append(("", region, in_short(error)))
            return []
        for _, hidden in looks:
            unseen.extend((f"{kind.kind}s in ", region, in_short(kind.error)) for kind in hidden)
        return [thing for things, _ in looks for thing in things if thing.alive]

    with ThreadPoolExecutor(8) as pool:
        found = [thing for things in pool.map(ask, regions) for thing in things]
    silent += grouped(dict.fromkeys(unseen))
    unique = {(t.kind, t.id): t for t in found}
    rows = [_judged(ctx, t, mine.live) for t in unique.values() if t.cluster not in mine.elsewhere]
    return mine, rows, sorted(silent)


def _home(only: Sequence[str]) -> str:
    return (list(only) or [aws_client.default_region() or "us-east-1"])[0]


def regions_of(ctx: Context, only: Sequence[str]) -> tuple[list[str], list[str]]:
    """Regions to look in, and what they leave out: who may not list all regions knows those of the own clusters."""
    if only:
        return list(only), []
    try:
        return sorted({_home(only), *aws_client.regions(_home(only))}), []
    except NexaError as error:
        if not (action := denied_action(error)):
            raise
    known = {_home(only)}
    for folder in ctx.workspace.clusters():
        with contextlib.suppress(NexaError):
            if scope := known_scope(folder):
                known.add(scope.region)
    return sorted(known), [f"regions other than {', '.join(sorted(known))}: {action} is denied"]


def grouped(hidden: Iterable[tuple[str, str, str]]) -> list[str]:
    """Lines of (what, region, why): one for each what and why, with all its regions."""
    regions: dict[tuple[str, str], list[str]] = {}
    for what, region, why in hidden:
        regions.setdefault((what, why), []).append(region)
    return [f"{what}{', '.join(sorted(where))}: {why}" for (what, why), where in regions.items()]


def images_kept(
    ctx: Context, owners: Sequence[str], only: Sequence[str] = ()
) -> tuple[list[tuple[str, int, float]], list[str]]:
    """(region, images, USD a month at most) wherever these owners have baked images, which stay until somebody deletes
    them; and where they could not be listed."""
    regions, _ = regions_of(ctx, only)
    hidden: list[tuple[str, str, str]] = []

    def ask(region: str) -> list[aws_images.Image]:
        try:
            return [image for owner in owners for image in aws_images.found(region, owner)]
        except NexaError as error:
            hidden.append(("images in ", region, in_short(error)))
            return []

    with ThreadPoolExecutor(8) as pool:
        found = list(zip(regions, pool.map(ask, regions), strict=True))
    kept = [(region, len(of), sum(image.usd_per_month for image in of)) for region, of in found if of]
    return kept, grouped(hidden)


def _judged(ctx: Context, thing: TaggedResource, live: Collection[str]) -> Found:
    """An orphan: past its own deadline, or made here for a cluster that this workspace knows no more."""
    holder, ours = thing.tags.get(WORKSPACE, "?"), our_tag(ctx)
    expired = _unix(thing.tags.get(EXPIRES, "")) < ctx.now()
    orphan = expired or (holder == ours and thing.cluster not in live)
    age = usd = None
    if thing.since_unix:
        age = round((ctx.now() - thing.since_unix) / 3600, 3)
        price = prices.on_demand(thing.offer.split()[0], thing.region)
        if thing.offer.endswith(" spot"):
            now = datetime.datetime.fromtimestamp(ctx.now(), datetime.UTC)
            try:
                spot = aws_client.Cloud(thing.region).spot_prices([thing.offer.split()[0]], now)
                price = spot.get((thing.offer.split()[0], thing.offer.split()[1]), price)
            except NexaError as error:  # what it costs must not hide that it is there
                ctx.say(f"warning: {thing.id} is counted at the on-demand price: {error}")
        usd = None if price is None else round(price * max(age, 1 / 60), 4)
    return Found(thing, "this workspace" if holder == ours else holder, orphan, age, usd)


def _unix(text: str) -> float:
    """A time that cannot be read never makes an orphan."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return float("inf")


def end(ctx: Context, orphans: Sequence[Found]) -> list[str]:
    """Ends the orphans, cluster by cluster. Answers what did not go."""
    wanted = {(f.thing.kind, f.thing.id) for f in orphans}
    kinds = tuple(kind for kind in tagged.ALL if kind in {kind for kind, _ in wanted})
    errors: list[str] = []
    for region, owner, cluster in sorted(
        {(f.thing.region, f.thing.tags[tagged.OWNER], f.thing.cluster) for f in orphans}
    ):
        _, left = end_tagged.sweep(
            lambda r=region, o=owner, c=cluster: [  # type: ignore[misc]
                t for t in tagged.find(r, o, c, kinds) if (t.kind, t.id) in wanted
            ],
            ctx.detail,
            ctx.sleep,
        )
        errors += left
    return errors
