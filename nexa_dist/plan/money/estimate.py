"""The bill before anything is spent: what a cluster will cost at least, as expected, and at worst. Pure.

The assumptions are named constants, shown beside the figures: nobody has measured your zone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.plan.aws import prices
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.plan.money.bill import MONTH_H
from nexa_dist.plan.money.budget import BOOT_S, GUARD

NODE_HOURS_A_PREEMPTION = 24.0
"""Spot only. AWS publishes classes of frequency (Spot Instance Advisor: under 5 to over 20 % a month), no rate."""
REPLACE_S = 900.0
"""Seconds that a lost node costs: the others wait while one is found, boots and is set up, and a checkpoint interval is
done again."""
LOGS_GB_A_NODE_HOUR, MOST_LOGS_GB_A_NODE_HOUR = 0.02, 1.0
"""GB of logs that a node sends to the controller in an hour: 6 kB/s as expected, 280 kB/s at worst. Checkpoints go to a
bucket of the same region, which costs no traffic."""
OVERSHOOT_S = 60.0
"""A node ends within a minute of its deadline."""


@dataclass(frozen=True)
class Rates:
    """US dollars an hour for the whole cluster. `dearest` is of the dearest offer that may be tried."""

    instances: float
    dearest: float
    disks: float
    addresses: float
    egress_usd_per_gb: float
    spot: bool

    @property
    def around(self) -> float:
        return self.disks + self.addresses

    @property
    def running(self) -> float:
        """USD that the cloud bills for each hour in which the nodes are on."""
        return self.instances + self.around


def rates_of(
    config: ClusterConfig, region: str, chosen: Candidate, dearest_usd_per_hour: float
) -> tuple[Rates, tuple[str, ...]]:
    """Rates of the cluster in USD an hour, and the parts that have no known price."""
    nodes = config.nodes or 0
    disk, address = prices.book().disk.usd.get(region), prices.book().address.usd.get(region)
    egress = prices.book().egress.usd.get(region)
    extras = (("disks", disk), ("public addresses", address), ("traffic", egress))
    unknown = tuple(what for what, price in extras if price is None)
    rates = Rates(
        instances=nodes * chosen.usd_per_hour,
        dearest=nodes * dearest_usd_per_hour,
        disks=nodes * config.volume_gb * (disk or 0.0) / MONTH_H,
        addresses=nodes * (address or 0.0),
        egress_usd_per_gb=egress or 0.0,
        spot=chosen.market == "spot",
    )
    return rates, unknown


@dataclass(frozen=True)
class Estimate:
    """US dollars. `worst_usd` holds with nobody home; `stops_h` is when the nodes end by themselves at the latest."""

    minimum_usd: float
    expected_usd: float
    worst_usd: float
    stops_h: float
    preemptions: float
    egress_usd: float
    """Egress to the controller, a part of `expected_usd`."""
    assumed: str

    def to_json(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def estimate(rates: Rates, nodes: int, max_hours: float, budget_usd: float | None = None) -> Estimate:
    """`max_hours` is the deadline of the nodes, from their launch.

    Minimum: given back as soon as they have booted. Expected: used until the deadline, with preemptions, which add the
    time of the others (the deadline does not move, so they add nothing to it). Worst: the dearest offer until the
    deadline; a budget caps it, since every node has it as a deadline too.
    """
    stops_h = max_hours
    if budget_usd is not None and rates.running > 0:
        stops_h = min(stops_h, budget_usd / (rates.running * GUARD))
    logs_usd = nodes * LOGS_GB_A_NODE_HOUR * rates.egress_usd_per_gb
    most_logs_usd = nodes * MOST_LOGS_GB_A_NODE_HOUR * rates.egress_usd_per_gb
    preemptions = nodes * stops_h / NODE_HOURS_A_PREEMPTION if rates.spot else 0.0
    worst = (rates.dearest + rates.around + most_logs_usd) * (max_hours + OVERSHOOT_S / 3600)
    if budget_usd is not None:
        worst = min(worst, budget_usd)
    return Estimate(
        minimum_usd=rates.running * min(BOOT_S / 3600, max_hours),
        expected_usd=min(worst, (rates.running + logs_usd) * stops_h),
        worst_usd=worst,
        stops_h=stops_h,
        preemptions=preemptions,
        egress_usd=logs_usd * stops_h,
        assumed=f"{BOOT_S / 60:.0f} min to boot, {LOGS_GB_A_NODE_HOUR * 1000:.0f} MB of logs a node and hour"
        + (
            f", one preemption in {NODE_HOURS_A_PREEMPTION:.0f} node-hours at {REPLACE_S / 60:.0f} min each"
            if rates.spot
            else ""
        ),
    )


def useful_hours(made: Estimate) -> float:
    """Hours of `stops_h` that are left for training after booting and the expected preemptions."""
    return max(0.0, made.stops_h - BOOT_S / 3600 - made.preemptions * REPLACE_S / 3600)


def moved(before_usd: float, now_usd: float) -> float:
    """Share by which a price has moved; infinite when it was none."""
    return abs(now_usd - before_usd) / before_usd if before_usd > 0 else float("inf")


MOVED_MOST = 0.1
"""A saved plan whose price has moved by more is refused."""
