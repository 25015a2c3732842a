"""Where the money went, and the one thing that would have saved most."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.plan.money.waste import Waste, waste

T = 1_800_000_000.0
SPOT = "g5.xlarge us-east-1a spot"
Event = dict[str, Any]


def node(until: float, usd: float | None = 3.6, offer: str = SPOT) -> list[Event]:
    row = {"node": "n0", "id": "i-0", "source": "cloud"}
    start = {**row, "event": "node_start", "at": T, "offer": offer, "usd_per_hour": usd}
    return [start, {**row, "event": "node_stop", "at": T + until, "why": "teardown"}]


def phases(*changes: tuple[float, str]) -> list[Event]:
    rows = [{"event": "phase", "at": T + at, "node": "n0", "phase": name} for at, name in changes]
    of_run = {"run": "r", "attempt": 1}
    return [{**row, **(of_run if row["phase"] in ("training", "recovering") else {})} for row in rows]


def of(*events: Event, listed: float | None = 10.8, bucket: bool = True) -> Waste:
    return waste(events, T + 1e6, lambda kind: listed if kind == "g5.xlarge" else None, bucket)


def rule(found: Waste) -> str:
    return found.suggestion.rule if found.suggestion else ""


def test_what_trained_and_what_did_not() -> None:
    found = of(*node(2000), *phases((0, "booting"), (200, "training"), (1700, "idle")))
    assert (found.usd, found.trained.usd, found.trained_share) == pytest.approx((2.0, 1.5, 0.75))
    assert {name: round(share.usd, 6) for name, share in found.lost.items()} == {
        "idle after the last run": 0.3, "booting": 0.2,
    }  # fmt: skip
    assert found.on_demand_usd == pytest.approx(6.0)
    assert found.to_json()["suggestion"]["usd"] == 0.3
    assert found.lines() == [
        "2.00 USD, 75% of them for training (1.50 USD)",
        "0.30 USD idle after the last run: 5.0 min of nodes",
        "0.20 USD booting: 3.3 min of nodes",
        "on demand: 6.00 USD",
        "saves most (0.30 USD at most): nexa teardown as soon as the run has ended, or idle_minutes in the cluster's"
        " file",
    ]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ([(0, "booting"), (100, "training"), (1200, "idle")], "late"),
        ([(0, "booting"), (1000, "training")], "boot"),
        ([(0, "idle"), (1500, "training")], "gaps"),
        ([(0, "training"), (1500, "lost"), (1900, "training")], "save"),
        ([(0, "training")], ""),
        ([(0, "idle"), (10, "training")], ""),
    ],
)
def test_the_suggestion_is_what_would_have_saved_most(changes: list[tuple[float, str]], wanted: str) -> None:
    found = of(*node(2000), *phases(*changes))
    assert rule(found) == wanted


def test_what_was_done_again_is_told_by_attempt() -> None:
    rows = [*node(2000), *phases((0, "training")), {"event": "lost", "at": T + 1500, "run": "r", "attempt": 1,
            "seconds": 500, "why": "n1 is gone"}]  # fmt: skip
    found = of(*rows)
    assert found.lines()[1:3] == [
        "0.50 USD lost work, done again: 8.3 min of nodes", "  0.50 USD in attempt 1 of r: n1 is gone",
    ]  # fmt: skip
    assert found.to_json()["again"] == [{"run": "r", "attempt": 1, "seconds": 500, "usd": 0.5, "why": "n1 is gone"}]


def test_without_a_bucket_one_is_suggested() -> None:
    rows = [*node(2000), *phases((0, "training"), (500, "lost"), (1900, "training"))]
    assert "bucket" in str(of(*rows, bucket=False).suggestion)
    assert "bucket" not in str(of(*rows, bucket=True).suggestion)


def test_a_cheaper_offer_that_was_seen() -> None:
    seen = {"event": "offered", "at": T - 9, "offer": "g6.xlarge us-east-1b spot", "usd_per_hour": 1.8}
    found = of(*node(2000), *phases((0, "training")), seen)
    assert rule(found) == "offer"
    assert found.suggestion and found.suggestion.usd == pytest.approx(1.0)
    own = {**seen, "offer": SPOT, "usd_per_hour": 3.6}
    assert rule(of(*node(2000), *phases((0, "training")), own)) == ""


def test_what_is_not_known_is_not_said() -> None:
    assert of(*node(2000), listed=None).on_demand_usd is None
    unknown = of(*node(2000, usd=None))
    assert unknown.usd is None
    assert unknown.lines() == ["cost unknown: an instance has no known price"]
    assert of().to_json()["suggestion"] is None


def test_what_was_on_demand_costs_what_it_cost() -> None:
    found = of(*node(3600, offer="g5.xlarge us-east-1a on_demand"), listed=99.0)
    assert found.on_demand_usd == pytest.approx(3.6)
