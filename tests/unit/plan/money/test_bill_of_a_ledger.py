"""The bill of a ledger: what it must say in known cases, and what must hold of every ledger."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_dist.plan.money.bill import Bill, bill
from nexa_dist.plan.money.ledger import PHASES

T = 1_800_000_000.0
SPOT = "g5.xlarge us-east-1a spot"
Event = dict[str, Any]


def start(node: str = "n0", at: float = T, ident: str = "", usd: float | None = 3.6, **more: Any) -> Event:
    row = {"event": "node_start", "at": at, "node": node, "id": ident or f"i-{node}", "offer": SPOT}
    return {**row, "usd_per_hour": usd, "disk_gb": 0, "public_ip": False, "source": "cloud", **more}


def stop(node: str = "n0", at: float = T, ident: str = "", source: str = "cloud") -> Event:
    return {"event": "node_stop", "at": at, "node": node, "id": ident or f"i-{node}", "why": "x", "source": source}


def phase(name: str, at: float, node: str | None = None, run: str | None = None, attempt: int | None = None) -> Event:
    return {"event": "phase", "at": at, "node": node, "phase": name, "run": run, "attempt": attempt}


def move(usd: float, at: float, offer: str = SPOT) -> Event:
    return {"event": "price", "at": at, "offer": offer, "usd_per_hour": usd}


def lost(seconds: float, at: float, run: str = "r", attempt: int = 1) -> Event:
    return {"event": "lost", "at": at, "run": run, "attempt": attempt, "seconds": seconds, "why": "notice"}


def usd(*events: Any, now: float = T + 1e6) -> float:
    return round(bill(events, now).usd, 6)


def test_a_second_costs_a_second_and_a_start_a_minute() -> None:
    assert usd(start(), stop(at=T + 1000)) == 1.0
    assert usd(start(), stop(at=T + 20)) == 0.06
    assert usd(start(), now=T + 5) == 0.06
    assert usd(start(), now=T + 2000) == 2.0
    assert usd(start(), stop(at=T + 20), start(at=T + 100), stop(at=T + 130)) == 0.12
    assert usd() == 0.0


def test_own_machines_have_no_first_minute() -> None:
    assert usd(start(offer="local", source="clock"), stop(at=T + 10)) == 0.01


def test_every_second_has_the_price_of_that_second() -> None:
    events = [start(usd=None), move(3.6, T - 500), move(7.2, T + 1000), move(1.8, T + 1500), stop(at=T + 2500)]
    assert usd(*events) == 1.0 + 1.0 + 0.5
    assert usd(start(), move(7.2, T + 1000), stop(at=T + 2000)) == 1.0 + 2.0, "the price at the start holds until then"
    assert usd(start(), move(99.0, T, "g5.xlarge us-east-1b spot"), stop(at=T + 1000)) == 1.0


@pytest.mark.parametrize("price", [None, -1.0, float("nan"), "3", True])
def test_an_unknown_price_is_never_nothing(price: Any) -> None:
    made = bill([start(usd=price), start("n1"), stop("n1", T + 1000)], T + 1000)
    assert made.unpriced == (f"n0 {SPOT}",)
    assert made.cost_usd is None and made.to_json()["usd"] is None
    assert [row.usd for row in made.nodes] == [None, 1.0]
    assert made.usd == 1.0


def test_disks_and_addresses_are_apart() -> None:
    extras: dict[str, Any] = {
        "disk_gb": 200,
        "disk_usd_per_gb_month": 0.073,
        "public_ip": True,
        "address_usd_per_hour": 0.005,
    }
    made = bill([start(**extras), stop(at=T + 3600)], T + 9e5)
    assert (made.instances_usd, made.disks_usd, made.addresses_usd) == pytest.approx((3.6, 0.02, 0.005))
    assert made.usd == pytest.approx(3.625)
    unknown = bill([start(disk_gb=200, public_ip=True), stop(at=T + 3600)], T + 9e5)
    assert unknown.uncounted == ("disk of n0", "address of n0")
    assert unknown.cost_usd == pytest.approx(3.6)


def test_traffic_is_counted_by_run_and_is_no_time() -> None:
    sent = [{"event": "egress", "at": T + at, "run": "r", "bytes": size, "usd_per_gb": 0.09}
            for at, size in ((10, 1e9), (30, 5e9), (20, 3e9), (40, -1), (50, float("nan")))]  # fmt: skip
    nobody_knows = {"event": "egress", "at": T, "run": "q", "bytes": 7, "usd_per_gb": None}
    made = bill([start(), stop(at=T + 1000), *sent, nobody_knows], T + 9e5)
    assert made.egress == {"q": 0.0, "r": pytest.approx(0.45)} and made.uncounted == ("traffic of q",)
    assert made.usd == pytest.approx(1.45) and made.run("r").usd == pytest.approx(0.45)
    assert sum(share.usd for share in made.phases.values()) == pytest.approx(1.0)


def test_the_cloud_stands_above_a_clock() -> None:
    assert usd(start(), stop(at=T + 5000, source="clock"), stop(at=T + 1000)) == 1.0
    assert usd(start(at=T - 4000, source="clock"), start(), stop(at=T + 1000)) == 1.0


def test_a_stop_before_its_start_is_a_minute() -> None:
    assert usd(start(), stop(at=T - 7000, source="clock")) == 0.06


def test_a_node_that_nobody_saw_ending_is_on_until_now_and_at_least_until_it_was_seen() -> None:
    assert usd(start(), {"event": "seen", "at": T + 2000}, now=T + 1000) == 2.0
    assert bill([start()], T + 1000).usd_per_hour == 3.6
    assert bill([start(), stop(at=T + 9)], T + 1000).usd_per_hour == 0.0


def test_phases_cover_the_bill_and_what_is_lost_is_taken_from_its_attempt() -> None:
    events = [
        start(), start("n1"), phase("booting", T), phase("bootstrapping", T + 100), phase("idle", T + 200),
        phase("training", T + 300, "n0", "r", 1), phase("training", T + 300, "n1", "r", 1), lost(150, T + 900),
        phase("recovering", T + 900, "n0", "r", 1), stop("n1", T + 880), phase("training", T + 1000, "n0", "r", 2),
        phase("idle", T + 1500, "n0"), stop(at=T + 2000),
    ]  # fmt: skip
    made = bill(events, T + 9000)
    seconds = {name: round(share.seconds) for name, share in made.phases.items()}
    assert seconds == {
        "booting": 200, "bootstrapping": 200, "idle": 200 + 500, "training": 2 * 450 + 500, "lost": 150 + 130,
        "recovering": 100,
    }  # fmt: skip
    assert {name: round(s.seconds) for name, s in made.runs["r"].items()} == {
        "training": 1400, "lost": 280, "recovering": 100,
    }  # fmt: skip
    assert made.run("r").usd == pytest.approx(1.78)


def test_the_next_machine_of_a_name_begins_without_the_phase_of_the_last() -> None:
    events = [start(), phase("training", T, "n0", "r", 1), stop(at=T + 100), start(at=T + 200, ident="i-2")]
    made = bill([*events, stop(at=T + 300, ident="i-2")], T + 999)
    assert (made.phases["training"].seconds, made.phases["idle"].seconds) == (100, 100)


def test_days_are_those_of_utc() -> None:
    midnight = T // 86_400 * 86_400 + 86_400
    made = bill([start(at=midnight - 1000), stop(at=midnight + 2000)], midnight + 9000)
    assert [(day, share.seconds, share.usd) for day, share in made.days.items()] == [
        ("2027-01-15", 1000, 1.0),
        ("2027-01-16", 2000, 2.0),
    ]


def test_what_is_no_event_is_passed_over() -> None:
    torn: list[Any] = [12, None, "x", [], {}, {"event": "node_start"}, {"event": "node_start", "at": "now", "id": "i"}]
    torn += [{"event": "node_stop", "at": T, "id": None}, {"event": "phase", "at": T, "phase": "sleeping"}]
    torn += [start(at=0.0, ident="i-9"), start(at=1e18, ident="i-9"), {"event": 7, "at": T}]
    assert usd(*torn, start(), stop(at=T + 1000)) == 1.0


def test_the_budget_in_force_is_the_last() -> None:
    rows = [{"event": "budget", "at": T + n, "usd": sum_, "by": "x"} for n, sum_ in ((1, 80.0), (0, 50.0))]
    assert bill(rows, T).budget_usd == 80.0
    assert bill([], T).budget_usd is None


TIMES = st.integers(-5_000, 200_000).map(lambda s: T + s)
NODES = st.sampled_from(["n0", "n1", "n2"])
IDS = st.sampled_from(["i-0", "i-1", "i-2", "i-3"])
USD = st.one_of(st.none(), st.floats(0, 100))
EVENTS = st.one_of(
    st.builds(
        start, NODES, TIMES, IDS, USD, source=st.sampled_from(["cloud", "clock"]), disk_gb=st.integers(0, 500),
        disk_usd_per_gb_month=st.sampled_from([None, 0.08]), public_ip=st.booleans(),
        address_usd_per_hour=st.sampled_from([None, 0.005]), offer=st.sampled_from([SPOT, "b c spot", "local"]),
    ),
    st.builds(stop, NODES, TIMES, IDS, st.sampled_from(["cloud", "clock"])),
    st.builds(phase, st.sampled_from(PHASES), TIMES, st.one_of(st.none(), NODES), st.sampled_from([None, "r", "s"]),
              st.sampled_from([None, 1, 2])),
    st.builds(move, st.floats(0, 100), TIMES),
    st.builds(lost, st.integers(0, 50_000), TIMES, st.sampled_from(["r", "s"]), st.sampled_from([1, 2])),
    st.builds(lambda at: {"event": "seen", "at": at}, TIMES),
    st.sampled_from([3, None, {"event": "price"}, {"at": T}]),
)  # fmt: skip
LEDGERS = st.lists(EVENTS, max_size=25)


def parts(made: Bill) -> dict[str, Any]:
    return made.to_json()


@given(LEDGERS, TIMES)
@settings(max_examples=80)
def test_phases_days_and_nodes_sum_to_the_bill(events: list[Any], now: float) -> None:
    made = bill(events, now)
    for shares in (made.phases, made.days):
        assert sum(s.usd for s in shares.values()) == pytest.approx(made.usd)
        assert sum(s.seconds for s in shares.values()) == pytest.approx(made.seconds)
    known = sum(row.usd for row in made.nodes if row.usd is not None)
    assert known <= made.usd + 1e-6
    assert made.unpriced or known == pytest.approx(made.usd)
    assert sum(made.run(run).usd for run in made.runs) <= made.usd + 1e-6
    assert all(row.seconds >= 60 or row.offer == "local" for row in made.nodes)


@given(LEDGERS, TIMES, st.integers(0, 100_000))
@settings(max_examples=60)
def test_the_bill_never_shrinks_as_time_passes(events: list[Any], now: float, later: int) -> None:
    assert bill(events, now + later).usd >= bill(events, now).usd - 1e-9


@given(LEDGERS, TIMES, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_lines_and_lines_that_are_there_twice_do_not_matter(
    events: list[Any], now: float, dice: random.Random
) -> None:
    mixed = [*events, *dice.choices(events, k=3)] if events else []
    dice.shuffle(mixed)
    assert parts(bill(mixed, now)) == parts(bill(events, now))
