"""The bill before anything is spent: what a cluster will cost at least, as expected, and at worst. Pure.

The assumptions are named constants, shown beside the figures: nobody has measured your zone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nexa_dist.plan.budget import BOOT_S, GUARD

NODE_HOURS_A_PREEMPTION = 24.0
"""Spot only. AWS publishes classes of frequency (Spot Instance Advisor: under 5 to over 20 % a month), no rate."""
REPLACE_S = 900.0
"""For a lost node: the others wait while one is found, boots and is set up, and a checkpoint interval is done again."""
OVERSHOOT_S = 60.0
"""A node ends within a minute of its deadline."""


@dataclass(frozen=True)
class Rates:
    """US dollars an hour for the whole cluster. `dearest` is of the dearest offer that may be tried."""

    instances: float
    dearest: float
    disks: float
    addresses: float
    spot: bool

    @property
    def around(self) -> float:
        return self.disks + self.addresses


@dataclass(frozen=True)
class Estimate:
    """US dollars. `worst_usd` holds with nobody home; `stops_h` is when the nodes end by themselves at the latest."""

    minimum_usd: float
    expected_usd: float
    worst_usd: float
    stops_h: float
    preemptions: float
    assumed: str

    def to_json(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def estimate(rates: Rates, nodes: int, max_hours: float, budget_usd: float | None = None) -> Estimate:
    """`max_hours` is the deadline of the nodes, from their launch.

    Minimum: given back as soon as they have booted. Expected: used until the deadline, with preemptions, which add the
    time of the others (the deadline does not move, so they add nothing to it). Worst: the dearest offer until the
    deadline; a budget caps it, since every node has it as a deadline too.
    """
    around = rates.around
    stops_h = max_hours
    if budget_usd is not None and rates.instances + around > 0:
        stops_h = min(stops_h, budget_usd / ((rates.instances + around) * GUARD))
    preemptions = nodes * stops_h / NODE_HOURS_A_PREEMPTION if rates.spot else 0.0
    worst = (rates.dearest + around) * (max_hours + OVERSHOOT_S / 3600)
    return Estimate(
        minimum_usd=(rates.instances + around) * min(BOOT_S / 3600, max_hours),
        expected_usd=(rates.instances + around) * stops_h,
        worst_usd=worst if budget_usd is None else min(worst, budget_usd),
        stops_h=stops_h,
        preemptions=preemptions,
        assumed=f"{BOOT_S / 60:.0f} min to boot"
        + (
            f", one preemption in {NODE_HOURS_A_PREEMPTION:.0f} node-hours at {REPLACE_S / 60:.0f} min each"
            if rates.spot
            else ""
        ),
    )


def useful_hours(made: Estimate) -> float:
    """Of `stops_h`, what is left for training after booting and the expected preemptions."""
    return max(0.0, made.stops_h - BOOT_S / 3600 - made.preemptions * REPLACE_S / 3600)


def moved(before_usd: float, now_usd: float) -> float:
    """By what share a price has moved; infinite when it was none."""
    return abs(now_usd - before_usd) / before_usd if before_usd > 0 else float("inf")


MOVED_MOST = 0.1
"""A saved plan whose price has moved by more is refused."""
