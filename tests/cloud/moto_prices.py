"""What an instance-hour costs in the emulated region, and what the instances have cost so far."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.responses import EC2Response

MINIMUM_S = 60.0
SPOT_SHARE = 0.35
PRODUCT = "Linux/UNIX"


@cache
def list_price_usd(type: str) -> float:  # noqa: A002
    """USD per hour on demand, by the type's GPU memory (or its CPUs): plausible, not AWS's own."""
    facts: dict[str, Any] = INSTANCE_TYPES.get(type, {})
    gpus = facts.get("GpuInfo", {}).get("Gpus", [])
    gib = sum(g["Count"] * g["MemoryInfo"]["SizeInMiB"] for g in gpus) / 1024
    return round(float(0.045 * gib if gib else 0.05 * facts.get("VCpuInfo", {}).get("DefaultVCpus", 1)), 4)


def default_usd(type: str, zone: str, market: str) -> float:  # noqa: A002
    """Zones differ by a few percent, so that 'cheapest' has one answer."""
    if market != "spot":
        return list_price_usd(type)
    return round(list_price_usd(type) * SPOT_SHARE * (1 + 0.03 * (ord(zone[-1]) - ord("a"))), 4)


class Prices:
    """USD per instance-hour over time, by (type, zone, market). Prices never set follow the formula."""

    def __init__(self, since_unix: float) -> None:
        self.since_unix = since_unix
        self._moves: dict[tuple[str, str, str], list[tuple[float, float]]] = {}

    def history(self, type: str, zone: str, market: str) -> list[tuple[float, float]]:  # noqa: A002
        """(since unix, USD per hour), oldest first."""
        base = (self.since_unix, default_usd(type, zone, market))
        return [base, *self._moves.get((type, zone, market), [])]

    def at(self, type: str, zone: str, market: str, unix: float) -> float:  # noqa: A002
        moves = self.history(type, zone, market)
        return moves[max(0, bisect.bisect_right(moves, (unix, float("inf"))) - 1)][1]

    def move(self, type: str, zone: str, market: str, usd: float) -> None:  # noqa: A002
        self._moves.setdefault((type, zone, market), []).append((time.time(), usd))

    def usd(self, line: BillLine, now: float) -> float:
        """By the second at the prices of each second, 60 s at least for every start."""
        total = 0.0
        moves = self.history(line.type, line.zone, line.market)
        for start, stop in line.ran:
            end = max(now if stop is None else stop, start + MINIMUM_S)
            for i, (since, price) in enumerate(moves):
                until = moves[i + 1][0] if i + 1 < len(moves) else end
                begins = start if i == 0 else max(start, since)
                total += max(0.0, min(end, until) - begins) / 3600 * price
        return total


@dataclass
class BillLine:
    """What one instance is billed for. `ran` are the (start, stop) unix times of its machine."""

    instance_id: str
    type: str
    zone: str
    market: str
    tags: dict[str, str]
    ran: list[tuple[float, float | None]] = field(default_factory=list)

    def starts(self, unix: float) -> None:
        self.ran.append((unix, None))

    def stops(self, unix: float) -> None:
        if self.ran and self.ran[-1][1] is None:
            self.ran[-1] = (self.ran[-1][0], unix)


def bill(prices: Prices, lines: list[BillLine]) -> dict[str, Any]:
    """Every instance there ever was: GET /_region/bill."""
    now = time.time()
    rows = [
        {
            "id": line.instance_id,
            "type": line.type,
            "zone": line.zone,
            "market": line.market,
            "tags": line.tags,
            "launch_unix": line.ran[0][0],
            "end_unix": line.ran[-1][1],
            "prices_usd_per_hour": prices.history(line.type, line.zone, line.market),
            "usd": round(prices.usd(line, now), 6),
        }
        for line in lines
        if line.ran
    ]
    return {"instances": rows, "usd": round(sum(prices.usd(line, now) for line in lines), 6), "at_unix": now}


def price_history(prices: Prices) -> Any:
    """DescribeSpotPriceHistory over the table: the moves since StartTime and the one in force at it."""

    def describe_spot_price_history(self: EC2Response) -> ActionResult:
        filters = self._filters_from_querystring()
        types = self._get_param("InstanceTypes", []) or filters.get("instance-type")
        zone = self._get_param("AvailabilityZone")
        zones = [zone] if zone else filters.get("availability-zone")
        products = self._get_param("ProductDescriptions", []) or filters.get("product-description")
        start, stop = (unix_of(self._get_param(k), default) for k, default in (("StartTime", 0.0), ("EndTime", None)))
        rows: list[dict[str, Any]] = []
        linux = not products or any(str(p).startswith(PRODUCT) for p in products)
        for offer in INSTANCE_TYPE_OFFERINGS["availability-zone"].get(self.region, []) if linux else []:
            type_, zone = offer["InstanceType"], offer["Location"]
            if (types and type_ not in types) or (zones and zone not in zones):
                continue
            moves = prices.history(type_, zone, "spot")
            first = max(0, bisect.bisect_right(moves, (start, float("inf"))) - 1)
            for since, usd in moves[first:]:
                if since <= stop:
                    rows.append(price_row(type_, zone, since, usd))
        rows.sort(key=lambda row: row["Timestamp"], reverse=True)
        begin = int(self._get_param("NextToken") or 0)
        end = begin + int(self._get_param("MaxResults") or 1000)
        return ActionResult({"SpotPriceHistory": rows[begin:end], "NextToken": str(end) if end < len(rows) else ""})

    return describe_spot_price_history


def price_row(type: str, zone: str, since: float, usd: float) -> dict[str, Any]:  # noqa: A002
    return {
        "InstanceType": type,
        "ProductDescription": PRODUCT,
        "SpotPrice": f"{usd:.6f}",
        "AvailabilityZone": zone,
        "Timestamp": datetime.fromtimestamp(since, UTC),
    }


def unix_of(value: Any, default: float | None) -> float:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, str) and value:
        return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()
    return time.time() if default is None else default
