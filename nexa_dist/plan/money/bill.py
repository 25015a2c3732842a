"""The bill of a cluster from its ledger. Pure: the same events and the same moment give the same bill.

Instances are billed by the second, a minute at least for each start, at the price of each second; their disks and
public addresses by the second too. What no event names is idle time, so the phases cover all time that is billed.
Traffic out of the cloud comes on top, by run: it is no time.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nexa_dist.plan.money import ledger as read
from nexa_dist.plan.money.ledger import PHASES, Change, Lost, Period, Phase

DAY_S = 86_400
MONTH_H = 730.0
"""Hours of the month by which disks are billed."""


@dataclass(frozen=True)
class Share:
    """A part of a bill. `usd` is what is known of it."""

    seconds: float = 0.0
    usd: float = 0.0

    def __add__(self, other: Share) -> Share:
        return Share(self.seconds + other.seconds, self.usd + other.usd)

    def to_json(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 1), "usd": round(self.usd, 6)}


@dataclass(frozen=True)
class Slice:
    """Time of one machine at one price in one phase. `instance_usd` is None where the price is not known."""

    period: Period
    begin_unix: float
    end_unix: float
    phase: Phase
    run: str | None
    attempt: int | None
    instance_usd: float | None
    disk_usd: float
    address_usd: float

    @property
    def share(self) -> Share:
        usd = (self.instance_usd or 0.0) + self.disk_usd + self.address_usd
        return Share(self.end_unix - self.begin_unix, usd)


@dataclass(frozen=True)
class NodeRow:
    """Bill of one start of one machine. `usd` holds its disk and address; None: its price is not known."""

    node: str
    id: str
    offer: str
    start_unix: float
    stop_unix: float | None
    seconds: float
    usd: float | None
    why: str = ""


@dataclass(frozen=True)
class Bill:
    """Bill of a cluster, in seconds of nodes and in USD, at `at_unix`. `runs` are phases by run."""

    at_unix: float
    nodes: tuple[NodeRow, ...]
    instances_usd: float
    disks_usd: float
    addresses_usd: float
    egress: Mapping[str, float]
    """USD by run, for what this machine was sent out of the cloud."""
    phases: Mapping[str, Share]
    runs: Mapping[str, Mapping[str, Share]]
    days: Mapping[str, Share]
    usd_per_hour: float
    """USD an hour of the nodes that are on, with disks and addresses."""
    unpriced: tuple[str, ...]
    """Instances without a known price; excluded from the totals."""
    uncounted: tuple[str, ...]
    """Disks, addresses and traffic without a known price; excluded from the totals."""
    budget_usd: float | None = None

    @property
    def usd(self) -> float:
        """Sum of everything with a known price."""
        return self.instances_usd + self.disks_usd + self.addresses_usd + self.egress_usd

    @property
    def egress_usd(self) -> float:
        return sum(self.egress.values())

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.nodes)

    @property
    def cost_usd(self) -> float | None:
        """`usd`, or None where an instance has no known price: an unknown cost is not 0."""
        return None if self.unpriced else self.usd

    def run(self, run_id: str) -> Share:
        """Share of one run: trained, lost, recovering, and its traffic."""
        return sum(self.runs.get(run_id, {}).values(), Share(0.0, self.egress.get(run_id, 0.0)))

    def to_json(self) -> dict[str, Any]:
        return {
            "at_unix": round(self.at_unix, 3),
            "usd": None if self.unpriced else round(self.usd, 6),
            "known_usd": round(self.usd, 6),
            "instances_usd": round(self.instances_usd, 6),
            "disks_usd": round(self.disks_usd, 6),
            "addresses_usd": round(self.addresses_usd, 6),
            "egress_usd": round(self.egress_usd, 6),
            "usd_per_hour": round(self.usd_per_hour, 6),
            "budget_usd": self.budget_usd,
            "unpriced": list(self.unpriced),
            "uncounted": list(self.uncounted),
            "seconds": round(self.seconds, 1),
            "nodes": [
                {**asdict(row), "seconds": round(row.seconds, 1), "usd": None if row.usd is None else round(row.usd, 6)}
                for row in self.nodes
            ],
            "phases": {name: share.to_json() for name, share in self.phases.items()},
            "runs": {
                run: {name: share.to_json() for name, share in by_phase.items()} for run, by_phase in self.runs.items()
            },
            "days": {day: share.to_json() for day, share in self.days.items()},
        }


def slices(lines: Iterable[Any], now_unix: float) -> list[Slice]:
    """Slices of all that is billed, by machine and time."""
    events = read.clean(lines)
    at, moved = max(now_unix, read.last_seen(events)), read.moves(events)
    changes, losses = read.changes(events), read.losses(events)
    return [piece for period in read.periods(events) for piece in _slices(period, moved, changes, losses, at)]


def bill(lines: Iterable[Any], now_unix: float) -> Bill:
    """The bill at `now_unix`. A node whose end nobody told is on until then, and at least until it was last seen."""
    events = read.clean(lines)
    at = max(now_unix, read.last_seen(events))
    found, moved, every = read.periods(events), read.moves(events), slices(events, now_unix)
    runs: dict[str, dict[str, Share]] = {}
    for piece in every:
        if piece.run:
            of_run = runs.setdefault(piece.run, {})
            of_run[piece.phase] = of_run.get(piece.phase, Share()) + piece.share
    days: dict[str, Share] = {}
    for piece in every:
        day = datetime.datetime.fromtimestamp(piece.begin_unix, datetime.UTC).date().isoformat()
        days[day] = days.get(day, Share()) + piece.share
    return Bill(
        at_unix=at,
        nodes=tuple(_row(period, [piece for piece in every if piece.period == period]) for period in found),
        instances_usd=sum(piece.instance_usd or 0.0 for piece in every),
        disks_usd=sum(piece.disk_usd for piece in every),
        addresses_usd=sum(piece.address_usd for piece in every),
        egress={row.run: row.gb * (row.usd_per_gb or 0.0) for row in read.egress(events)},
        phases={name: sum((p.share for p in every if p.phase == name), Share()) for name in PHASES},
        runs={run: runs[run] for run in sorted(runs)},
        days={day: days[day] for day in sorted(days)},
        usd_per_hour=sum(_rate(p, moved, at) for p in found if p.stop_unix is None),
        unpriced=_named(f"{p.node} {p.offer}" for p in found if _price(p, moved, p.start_unix) is None),
        uncounted=_named(
            [*(what for p in found for what in _unknown(p))]
            + [f"traffic of {row.run}" for row in read.egress(events) if row.usd_per_gb is None]
            + [f"{row.what} ({row.gb:.2f} GB) of {row.run}" for row in read.traffic(events) if row.usd_per_gb is None]
        ),
        budget_usd=read.budget(events),
    )


def _named(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _unknown(period: Period) -> Iterable[str]:
    if period.disk_gb and period.disk_usd_per_gb_month is None:
        yield f"disk of {period.node}"
    if period.public_ip and period.address_usd_per_hour is None:
        yield f"address of {period.node}"


def _row(period: Period, pieces: Sequence[Slice]) -> NodeRow:
    share = sum((piece.share for piece in pieces), Share())
    usd = None if any(piece.instance_usd is None for piece in pieces) else share.usd
    return NodeRow(
        period.node, period.id, period.offer, period.start_unix, period.stop_unix, share.seconds, usd, period.why
    )


Moves = Mapping[str, Sequence[tuple[float, float]]]


def _price(period: Period, moved: Moves, at: float) -> float | None:
    """USD/h of the instance at a time: the last move before it; without one, the price at the start."""
    rows = moved.get(period.offer, ())
    place = bisect.bisect_right(rows, (at, float("inf")))
    if place:
        return rows[place - 1][1]
    return period.usd_per_hour if period.usd_per_hour is not None else (rows[0][1] if rows else None)


def _extras(period: Period) -> tuple[float, float]:
    """USD/h of the disk and of the address, as far as known."""
    disk = period.disk_gb * (period.disk_usd_per_gb_month or 0.0) / MONTH_H
    return disk, (period.address_usd_per_hour or 0.0) if period.public_ip else 0.0


def _rate(period: Period, moved: Moves, at: float) -> float:
    return (_price(period, moved, at) or 0.0) + sum(_extras(period))


def _slices(
    period: Period, moved: Moves, changes: Sequence[Change], losses: Sequence[Lost], now_unix: float
) -> list[Slice]:
    """The billed time of one period, cut wherever its price, its phase or the day changes."""
    begin, end = period.start_unix, period.billed_until(now_unix)
    mine = sorted(
        (max(begin, c.at) if c.id else c.at, place, c) for place, c in enumerate(changes) if _is_of(c, period)
    )
    cuts = {begin, end, *(at for at, _, _ in mine), *(at for at, _ in moved.get(period.offer, ()))}
    cuts |= {edge for lost in losses for edge in (lost.at - lost.seconds, lost.at)}
    cuts |= {float(day * DAY_S) for day in range(int(begin // DAY_S) + 1, int(end // DAY_S) + 1)}
    edges = sorted(cut for cut in cuts if begin <= cut <= end)
    disk, address = _extras(period)
    made = []
    for since, until in itertools.pairwise(edges):
        place = bisect.bisect_right(mine, since, key=lambda row: row[0])
        change = mine[place - 1][2] if place else Change(begin, None, "idle")
        phase = change.phase
        if phase == "training" and any(_covers(lost, change, since, until) for lost in losses):
            phase = "lost"
        hours, usd = (until - since) / 3600, _price(period, moved, since)
        instance = None if usd is None else usd * hours
        made.append(
            Slice(period, since, until, phase, change.run, change.attempt, instance, disk * hours, address * hours)
        )
    return made


def _is_of(change: Change, period: Period) -> bool:
    """Tell whether the change is of this machine, and not of one that bore the node's name before."""
    if change.id:
        return change.id == period.id
    return change.node in (None, period.node) and change.at >= period.start_unix


def _covers(lost: Lost, change: Change, since: float, until: float) -> bool:
    same = (lost.run, lost.attempt) == (change.run, change.attempt)
    return same and lost.at - lost.seconds <= since and until <= lost.at
