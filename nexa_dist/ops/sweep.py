"""nexa sweep: everything of yours in every region, and which of it nobody will ever end."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.site import our_tag
from nexa_dist.ops.whose import Whose, whose
from nexa_dist.plan import prices
from nexa_dist.run import aws, images, leftovers
from nexa_dist.run.leftovers import EXPIRES, WORKSPACE, Thing


@dataclass(frozen=True)
class Found:
    """One thing, whose it is, and what it has cost so far (None: no price is known)."""

    thing: Thing
    holder: str
    orphan: bool
    age_hours: float | None
    usd: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.thing.to_json(),
            "cluster": self.thing.cluster,
            "owner": self.thing.tags.get(leftovers.OWNER, ""),
            "offer": self.thing.offer,
            "holder": self.holder,
            "orphan": self.orphan,
            "age_hours": self.age_hours,
            "usd": self.usd,
        }


def survey(ctx: Context, only: Sequence[str] = (), named: Sequence[str] = ()) -> tuple[Whose, list[Found], list[str]]:
    """Whose it is, all that carries one of the owners' tags (those `named`, else all of `whose`) in every region (or
    `only` some), and why a region did not answer."""
    home = (list(only) or [aws.default_region() or "us-east-1"])[0]
    mine = whose(ctx, aws.identity(home), only, named)
    regions = list(only) or aws.regions(home)
    silent: list[str] = []

    def ask(region: str) -> list[Thing]:
        try:
            return [thing for owner in mine.owners for thing in leftovers.find(region, owner) if thing.alive]
        except NexaError as error:  # one region that is denied or away must not hide the others
            silent.append(f"{region}: {error}")
            return []

    with ThreadPoolExecutor(8) as pool:
        found = [thing for things in pool.map(ask, regions) for thing in things]
    unique = {(t.kind, t.id): t for t in found}  # IAM answers the same in every region
    rows = [_judged(ctx, t, mine.live) for t in unique.values() if t.cluster not in mine.elsewhere]
    return mine, rows, sorted(silent)


def images_kept(ctx: Context, owner: str, only: Sequence[str] = ()) -> list[tuple[str, int, float]]:
    """(region, images, USD a month at most) wherever there are baked images: they stay until somebody deletes them.

    A region that does not answer is passed over: `survey` has named it.
    """
    regions = list(only) or aws.regions(aws.default_region() or "us-east-1")

    def ask(region: str) -> list[images.Image]:
        try:
            return images.found(region, owner)
        except NexaError as error:
            ctx.detail(f"{region}: {error}")
            return []

    with ThreadPoolExecutor(8) as pool:
        found = zip(regions, pool.map(ask, regions), strict=True)
        return [(region, len(of), sum(image.usd_per_month for image in of)) for region, of in found if of]


def _judged(ctx: Context, thing: Thing, live: Collection[str]) -> Found:
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
            spot = aws.Cloud(thing.region).spot_prices([thing.offer.split()[0]], now)
            price = spot.get((thing.offer.split()[0], thing.offer.split()[1]), price)
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
    errors: list[str] = []
    for region, owner, cluster in sorted(
        {(f.thing.region, f.thing.tags[leftovers.OWNER], f.thing.cluster) for f in orphans}
    ):
        _, left = leftovers.sweep(
            lambda r=region, o=owner, c=cluster: [  # type: ignore[misc]
                t for t in leftovers.find(r, o, c) if (t.kind, t.id) in wanted
            ],
            ctx.detail,
            ctx.sleep,
        )
        errors += left
    return errors
