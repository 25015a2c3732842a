"""Budgets: warnings once each, a stop in time, clocks of the nodes that hold at a higher price."""

from __future__ import annotations

import random

import pytest

from nexa_dist.plan.money.budget import GUARD, REARM_S, RESERVE_S, Budget, tightest, too_small


@pytest.mark.parametrize(
    ("spent", "said", "passed"),
    [(0, 0, None), (4.99, 0, None), (5, 0, 0.5), (5, 0.5, None), (8.1, 0.5, 0.8), (9.9, 0, 0.95), (99, 0.95, None)],
)
def test_each_share_is_warned_of_once(spent: float, said: float, passed: float | None) -> None:
    found = Budget(10.0, spent, 2.0).warning(said)
    assert (found and found[0]) == passed
    if found:
        assert f"{spent:.2f} of 10.00 USD" in found[1]


def test_what_costs_nothing_never_ends() -> None:
    budget = Budget(1.0, 0.0, 0.0)
    assert budget.deadline_unix(5.0) is None and not budget.due() and budget.seconds_left() == float("inf")


def test_the_one_that_ends_first_counts() -> None:
    run, cluster = Budget(5.0, 1.0, 2.0, "run"), Budget(50.0, 47.0, 2.0)
    assert tightest([run, cluster]) is cluster
    assert tightest([]) is None


@pytest.mark.parametrize("seed", range(50))
def test_a_living_controller_stays_within_the_budget(seed: int) -> None:
    """It looks every ten seconds, sets the nodes' clocks every minute, and prices move; the stop takes its reserve."""
    chance = random.Random(seed)
    usd, rate, spent, now, armed = chance.uniform(1, 100), chance.uniform(0.5, 60), 0.0, 0.0, -REARM_S
    due = 0.0
    while not Budget(usd, spent, rate).due():
        if now - armed >= REARM_S:
            due, armed = Budget(usd, spent, rate).deadline_unix(now) or 0.0, now
        assert now < due  # no node ends under a controller that lives
        spent += rate * 10 / 3600
        now += 10
        rate *= chance.uniform(0.999, 1.001)
        if now > 10**6:
            pytest.fail("it never ends")
    assert spent + rate * RESERVE_S / 3600 <= usd + rate * 11 / 3600


@pytest.mark.parametrize("seed", range(50))
def test_with_nobody_home_the_nodes_clocks_hold_the_budget(seed: int) -> None:
    chance = random.Random(seed)
    budget = Budget(chance.uniform(1, 100), 0.0, chance.uniform(0.5, 60))
    lives_s = budget.deadline_unix(0.0) or 0.0
    risen = budget.usd_per_hour * chance.uniform(0.5, GUARD)
    assert risen * lives_s / 3600 <= budget.budget_usd * (1 + 1e-9)


def test_a_budget_that_buys_no_boot_is_refused() -> None:
    assert "is used up before the nodes have booted" in too_small(1.0, 40.0)
    assert too_small(50.0, 40.0) == ""
