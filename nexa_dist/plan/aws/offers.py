"""Capacity search: what may be rented, in which order, and what a refusal means. Pure; prices come in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.fields import region_of
from nexa_dist.model import Market
from nexa_dist.refusal import NETWORK, OF_INSTANCES, PREEMPTED, gravest, only_read, read

REFUSED_LATELY_S = 30 * 60.0
PREEMPTED_LATELY_S = 2 * 3600.0


@dataclass(frozen=True)
class Candidate:
    """One way to rent a node: the whole gang is of one candidate."""

    type: str
    zone: str
    market: Market
    gpus: int
    """GPUs of the instance type."""
    usd_per_hour: float
    """Price of one node."""
    why: str = ""
    """Why it stands where it stands."""

    @property
    def usd_per_gpu_hour(self) -> float:
        return self.usd_per_hour / self.gpus

    @property
    def title(self) -> str:
        return f"{self.type} {self.zone} {self.market}"


@dataclass(frozen=True)
class Refusal:
    """Refusal of a candidate lately."""

    type: str
    zone: str
    market: str
    code: str
    at_unix: float


@dataclass(frozen=True)
class RegionMarket:
    """Market of a region: GPUs by type, zones by type, USD/h by (type, zone) on spot, by type on demand."""

    gpus: Mapping[str, int]
    zones: Mapping[str, Sequence[str]]
    spot: Mapping[tuple[str, str], float]
    on_demand: Callable[[str], float | None]
    spot_age_s: float = 0.0
    """Age in seconds of the oldest spot price."""


def candidates(config: ClusterConfig, region: RegionMarket) -> tuple[list[Candidate], list[str]]:
    """Every candidate in order of preference, and a line for each offer that was left out."""
    found: list[Candidate] = []
    dropped: list[str] = []
    markets: tuple[Market, ...] = ("spot", "on_demand") if config.market == "spot_then_on_demand" else (config.market,)
    for market in markets:
        tier: list[Candidate] = []
        for place, (kind, wanted_zone) in enumerate(_wanted(config, region)):
            gpus = region.gpus.get(kind, 0)
            if kind not in region.gpus:
                dropped.append(f"{kind}: not offered in this region, or without NVIDIA GPUs")
                continue
            if gpus < (config.gpus_per_node or 0):
                dropped.append(f"{kind}: has {gpus} GPUs, {config.gpus_per_node} are wanted")
                continue
            # A local zone (us-east-1-bos-1a) is no zone of the region's own network.
            zones = [z for z in sorted(region.zones.get(kind, ())) if wanted_zone in (None, z) and region_of(z)]
            if not zones:
                dropped.append(f"{kind}: not offered in {wanted_zone or 'this region'}")
            priced = [_priced(config, region, kind, zone, market, gpus, place, dropped) for zone in zones]
            tier += sorted((c for c in priced if c), key=lambda c: c.usd_per_hour)
        found += sorted(tier, key=lambda c: c.usd_per_gpu_hour) if config.offers == "cheapest" else tier
    first = {candidate.title: candidate for candidate in reversed(found)}  # an offer may be named twice
    return [candidate for candidate in found if first[candidate.title] is candidate], list(dict.fromkeys(dropped))


def in_zones(
    found: Sequence[Candidate], dropped: Sequence[str], zones: Collection[str]
) -> tuple[list[Candidate], list[str]]:
    """The candidates in these zones, which are those of the user's own subnets, and a line for each of the others."""
    kept = [candidate for candidate in found if candidate.zone in zones]
    others = [f"{one.title}: none of `subnets` with room is in that zone" for one in found if one not in kept]
    return kept, [*dropped, *others]


def _wanted(config: ClusterConfig, region: RegionMarket) -> list[tuple[str, str | None]]:
    if config.offers != "cheapest":
        return [(offer.type, offer.zone) for offer in config.offers if not isinstance(offer, str)]
    return [(kind, None) for kind, gpus in sorted(region.gpus.items()) if gpus == config.gpus_per_node]


def _priced(
    config: ClusterConfig,
    region: RegionMarket,
    kind: str,
    zone: str,
    market: Market,
    gpus: int,
    place: int,
    dropped: list[str],
) -> Candidate | None:
    """An unknown price is never 0: the file's, or the on-demand one as the most that spot can cost, or none."""
    known = region.spot.get((kind, zone)) if market == "spot" else region.on_demand(kind)
    why = "cheapest per GPU-hour" if config.offers == "cheapest" else f"offer {place + 1} of the file"
    if market == "spot" and known is not None and region.spot_age_s:
        why += f", spot price of {region.spot_age_s / 3600:.1f} h ago"
    usd = known
    if usd is None and market == "spot" and (usd := region.on_demand(kind)) is not None:
        why += ", spot price unknown: on-demand price taken"
    if usd is None and (usd := config.price_usd_per_hour) is not None:
        why += ", price of the file"
    title = f"{kind} {zone} {market}"
    if usd is None:
        dropped.append(f"{title}: no price is known (price_usd_per_hour in the cluster's file gives one)")
        return None
    if config.max_price_usd_per_hour is not None and usd > config.max_price_usd_per_hour:
        dropped.append(f"{title}: {usd:.2f} USD/h is over max_price_usd_per_hour {config.max_price_usd_per_hour:.2f}")
        return None
    return Candidate(kind, zone, market, gpus, usd, why)


def ordered(found: Iterable[Candidate], refusals: Iterable[Refusal], now: float) -> list[tuple[Candidate, str]]:
    """Candidates with the reason for their place: those that refused or preempted lately come last."""
    fresh: list[tuple[Candidate, str]] = []
    late: list[tuple[float, Candidate, str]] = []
    last = {(r.type, r.zone, r.market): r for r in sorted(refusals, key=lambda r: r.at_unix) if _holds(r, now)}
    for candidate in found:
        refusal = last.get((candidate.type, candidate.zone, candidate.market))
        if refusal:
            ago = f"{(now - refusal.at_unix) / 60:.0f} min ago"
            late.append((refusal.at_unix, candidate, f"{candidate.why}; {refusal.code} {ago}, so tried last"))
        else:
            fresh.append((candidate, candidate.why))
    return fresh + [(candidate, why) for _, candidate, why in sorted(late, key=lambda row: row[0])]


def _holds(refusal: Refusal, now: float) -> bool:
    return 0 <= now - refusal.at_unix < (PREEMPTED_LATELY_S if refusal.code == PREEMPTED else REFUSED_LATELY_S)


@dataclass(frozen=True)
class Verdict:
    """Verdict on a failed apply: try another candidate, or stop. `message` goes before Terraform's own words."""

    code: str
    move_on: bool
    account_wide: bool = False
    passing: bool = False
    message: str = ""
    said: str = field(default="", compare=False)
    """The code and AWS's own sentence."""


def verdict(error: str) -> Verdict:
    """Reads the words of Terraform's AWS provider. What is not known to be a lack of capacity stops."""
    told = gravest(read(error))
    if told is None:
        return Verdict("", False)
    of_instances = told.kind == "quota" and told.code in OF_INSTANCES
    # with no answer, what was asked for may have been made
    passing = told.kind == "passing" and (told.code != NETWORK or only_read(error))
    refused = told.kind in ("credentials", "denied")
    message = f"the cloud refuses these credentials: {told.action or told.code}" if refused else ""
    return Verdict(told.code, told.kind == "capacity" or of_instances, of_instances, passing, message, str(told))
