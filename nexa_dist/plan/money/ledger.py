"""Ledger: what its lines say, when which node was on, what it cost, what it did. Pure.

Lines may be torn, twice there, out of order, or written by a clock that jumped. What the cloud told stands above what
a controller's clock told of the same thing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["booting", "bootstrapping", "idle", "training", "lost", "recovering"]
PHASES: tuple[Phase, ...] = ("booting", "bootstrapping", "training", "lost", "recovering", "idle")
_AT_ONCE: tuple[Phase, ...] = ("recovering", "idle", "booting", "bootstrapping", "lost", "training")
"""Order of phases that begin at the same moment: the later one in this list holds."""
MINIMUM_S = 60.0
EARLIEST, LATEST = 1e9, 4.2e9
"""Between 2001 and 2103: no line of a ledger is from outside of it."""
BYTES_A_GB = 1e9
OWN = ("local", "static", "slurm")
"""Offers of one's own machines: no cloud bills a first minute of them."""


@dataclass(frozen=True)
class Period:
    """One stretch of time in which one machine was on. `stop_unix` is None while it is. A price of None is unknown."""

    node: str
    id: str
    offer: str
    start_unix: float
    stop_unix: float | None
    usd_per_hour: float | None
    """Price at start; later spot prices are `price` events."""
    disk_gb: float
    disk_usd_per_gb_month: float | None
    public_ip: bool
    address_usd_per_hour: float | None
    why: str = ""
    """Why it ended."""

    def billed_until(self, now_unix: float) -> float:
        """The end of what is billed: a minute at least for each start."""
        end = self.stop_unix if self.stop_unix is not None else now_unix
        return max(end, self.start_unix + (0.0 if self.offer in OWN else MINIMUM_S))


@dataclass(frozen=True)
class Change:
    """A phase that begins. `node` None is all nodes; with an `id`, only that machine, and never before its start."""

    at: float
    node: str | None
    phase: Phase
    run: str | None = None
    attempt: int | None = None
    id: str = ""


@dataclass(frozen=True)
class Lost:
    """Time of an attempt, on all its nodes, that has to be done again: the `seconds` before `at`."""

    at: float
    run: str | None
    attempt: int | None
    seconds: float


Event = Mapping[str, Any]


def clean(lines: Iterable[Any]) -> list[dict[str, Any]]:
    """The events among the lines, each once, in the order of their times."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if isinstance(line, dict) and isinstance(line.get("event"), str) and _when(line.get("at")):
            found[json.dumps(line, sort_keys=True, default=str)] = line
    return [line for _, line in sorted(found.items(), key=lambda item: (float(item[1]["at"]), item[0]))]


def periods(events: Iterable[Event]) -> list[Period]:
    """Periods in which each machine was on, by start. `events` are clean."""
    starts: dict[str, list[Event]] = {}
    stops: dict[str, list[Event]] = {}
    for event in events:
        kind, ident = event["event"], event.get("id")
        if kind in ("node_start", "node_stop") and isinstance(ident, str) and ident:
            (starts if kind == "node_start" else stops).setdefault(ident, []).append(event)
    found = [p for ident, rows in starts.items() for p in _of_machine(_distinct(rows), stops.get(ident, []))]
    return sorted(found, key=lambda period: (period.start_unix, period.node, period.id))


def _distinct(rows: list[Event]) -> list[Event]:
    """One start a time: those of the cloud if it told any, and of two for one time the one that knows its price."""
    first = [row for row in rows if float(row["at"]) == float(rows[0]["at"])]
    told = [row for row in rows if row.get("source") == "cloud"] or first
    known: dict[float, Event] = {}
    for row in told:
        at = float(row["at"])
        if at not in known or number(known[at].get("usd_per_hour")) is None:
            known[at] = row
    return [known[at] for at in sorted(known)]


def _of_machine(starts: list[Event], stops: list[Event]) -> list[Period]:
    """A machine that was started again was stopped before, at the latest then."""
    times = [float(start["at"]) for start in starts]
    made = []
    for place, start in enumerate(starts):
        begin, after = times[place], times[place + 1] if place + 1 < len(times) else math.inf
        # A stop before the first start is the same stop, by a clock that was behind.
        low = -math.inf if place == 0 else begin
        within = [stop for stop in stops if low <= float(stop["at"]) < after]
        stop = min(within, key=lambda s: (s.get("source") != "cloud", float(s["at"])), default=None)
        end = max(begin, float(stop["at"])) if stop else (after if after < math.inf else None)
        made.append(
            Period(
                node=str(start.get("node") or "?"),
                id=str(start["id"]),
                offer=str(start.get("offer") or "?"),
                start_unix=begin,
                stop_unix=end,
                usd_per_hour=price(start.get("usd_per_hour")),
                disk_gb=price(start.get("disk_gb")) or 0.0,
                disk_usd_per_gb_month=price(start.get("disk_usd_per_gb_month")),
                public_ip=start.get("public_ip") is True,
                address_usd_per_hour=price(start.get("address_usd_per_hour")),
                why=str(stop.get("why") or "") if stop else "",
            )
        )
    return made


def moves(events: Iterable[Event]) -> dict[str, list[tuple[float, float]]]:
    """(since unix, USD/h) by offer, oldest first."""
    found: dict[str, dict[float, float]] = {}
    for event in events:
        usd = price(event.get("usd_per_hour"))
        if event["event"] == "price" and usd is not None and isinstance(event.get("offer"), str):
            found.setdefault(event["offer"], {})[float(event["at"])] = usd
    return {offer: sorted(rows.items()) for offer, rows in found.items()}


def changes(events: Iterable[Event]) -> list[Change]:
    """Phases in the order in which they begin."""
    found = [
        Change(
            float(event["at"]),
            str(event["node"]) if event.get("node") else None,
            event["phase"],
            str(event["run"]) if event.get("run") else None,
            event["attempt"] if isinstance(event.get("attempt"), int) else None,
            str(event.get("id") or ""),
        )
        for event in events
        if event["event"] == "phase" and event.get("phase") in PHASES
    ]
    return sorted(found, key=lambda change: (change.at, _AT_ONCE.index(change.phase)))


def losses(events: Iterable[Event]) -> list[Lost]:
    """Losses: training that had to be done again."""
    found = []
    for event in events:
        seconds = price(event.get("seconds"))
        if event["event"] == "lost" and seconds:
            attempt = event["attempt"] if isinstance(event.get("attempt"), int) else None
            found.append(Lost(float(event["at"]), event.get("run"), attempt, seconds))
    return found


@dataclass(frozen=True)
class Traffic:
    """Bytes of one run that a cloud bills, and what they were. A price of None is unknown."""

    run: str
    what: str
    gb: float
    usd_per_gb: float | None


def egress(events: Iterable[Event]) -> list[Traffic]:
    """Traffic that left the cloud for this machine, one row a run: its lines count from the run's beginning, so the
    largest of them is all of it."""
    rows = sorted(traffic(events, "egress"), key=lambda row: (row.run, row.gb))
    return list({row.run: row for row in rows}.values())


def traffic(events: Iterable[Event], kind: str = "traffic") -> list[Traffic]:
    """Traffic that came to the nodes out of another region, once each."""
    return [
        Traffic(event["run"], str(event.get("what")), size / BYTES_A_GB, price(event.get("usd_per_gb")))
        for event in events
        if event["event"] == kind and isinstance(event.get("run"), str)
        if (size := price(event.get("bytes"))) is not None
    ]


def last_seen(events: Iterable[Event]) -> float:
    """The last moment at which the controller saw the nodes on; 0 when it never did."""
    return max((float(event["at"]) for event in events if event["event"] == "seen"), default=0.0)


def budget(events: Iterable[Event]) -> float | None:
    """USD of the budget in force; None when there is none."""
    found = [usd for event in events if event["event"] == "budget" and (usd := price(event.get("usd")))]
    return found[-1] if found else None


def _when(value: Any) -> bool:
    at = number(value)
    return at is not None and EARLIEST <= at <= LATEST


def number(value: Any) -> float | None:
    """A finite number, else None."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e300 else None


def price(value: Any) -> float | None:
    """A number that is not negative, else None: what is not known is never free."""
    found = number(value)
    return found if found is not None and found >= 0 else None
