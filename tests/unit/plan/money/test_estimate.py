"""The bill before: bounds hold for every cluster, a budget caps the worst case."""

from __future__ import annotations

import random

import pytest

from nexa_dist.plan.money.budget import GUARD
from nexa_dist.plan.money.estimate import Rates, estimate, moved, useful_hours

SPOT = Rates(instances=2.82, dearest=2.9, disks=0.044, addresses=0.01, egress_usd_per_gb=0.09, spot=True)
LOGS = 2 * 0.02 * 0.09


def test_two_nodes_for_two_hours() -> None:
    made = estimate(SPOT, 2, 2.0)
    assert made.stops_h == 2.0
    assert made.egress_usd == pytest.approx(LOGS * 2)
    assert made.expected_usd == pytest.approx((2.874 + LOGS) * 2)
    assert made.minimum_usd == pytest.approx(2.874 / 6)
    assert made.worst_usd == pytest.approx((2.954 + 2 * 0.09) * (2 + 1 / 60))
    assert made.preemptions == pytest.approx(4 / 24)
    assert "one preemption in 24 node-hours" in made.assumed
    assert useful_hours(made) == pytest.approx(2 - 1 / 6 - 4 / 24 / 4)


def test_a_budget_is_the_worst_that_can_be_and_moves_the_deadline() -> None:
    made = estimate(SPOT, 2, 24.0, budget_usd=10.0)
    assert made.worst_usd == 10.0
    assert made.stops_h == pytest.approx(10 / (2.874 * GUARD))
    assert estimate(SPOT, 2, 1.0, budget_usd=10.0).stops_h == 1.0


@pytest.mark.parametrize("seed", range(30))
def test_minimum_expected_and_worst_are_in_order(seed: int) -> None:
    chance = random.Random(seed)
    price = chance.uniform(0.1, 90)
    rates = Rates(
        price, price * chance.uniform(1, 3), chance.random(), chance.random() / 10, chance.random(),
        chance.random() < 0.5,
    )  # fmt: skip
    made = estimate(
        rates, chance.randint(1, 64), chance.uniform(0.05, 100), chance.choice([None, chance.uniform(5, 500)])
    )
    assert made.minimum_usd >= 0 and made.expected_usd <= made.worst_usd
    assert made.expected_usd == 0 or made.stops_h > 0
    assert rates.spot == (made.preemptions > 0)


def test_a_price_that_moved() -> None:
    assert moved(10.0, 11.1) > 0.1 > moved(10.0, 10.9)
    assert moved(0.0, 1.0) == float("inf")
