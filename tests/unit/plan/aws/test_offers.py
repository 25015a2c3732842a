"""The order of offers, and what the provider's words mean."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.plan.aws.offers import (
    PREEMPTED,
    Candidate,
    Refusal,
    RegionMarket,
    Verdict,
    candidates,
    ordered,
    verdict,
)
from nexa_dist.refusal import NETWORK
from nexa_dist.shape import lenient, of
from tests.unit.cloud_server import NOW, config

L40S, L4, P5, G5 = "g6e.12xlarge", "g6.12xlarge", "p5.48xlarge", "g5.xlarge"
REGION = RegionMarket(
    gpus={L40S: 4, L4: 4, P5: 8, G5: 1},
    zones={L40S: ["us-east-1b", "us-east-1a"], L4: ["us-east-1a", "us-east-1-bos-1a"], P5: ["us-east-1a"], G5: []},
    spot={(L40S, "us-east-1a"): 5.0, (L40S, "us-east-1b"): 4.0, (L4, "us-east-1a"): 2.0, (P5, "us-east-1a"): 6.0},
    on_demand={L40S: 10.0, L4: 4.6, P5: 55.0}.get,
)
A, B = f"{L40S} us-east-1a spot", f"{L40S} us-east-1b spot"
FOUR, EIGHT = f"{L4} us-east-1a spot", f"{P5} us-east-1a spot"


def one(kind: str, zone: str | None = None) -> dict[str, Any]:
    return {"type": kind, **({"zone": zone} if zone else {})}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"offers": "cheapest"}, [FOUR, B, A]),  # of the wanted size only
        ({"offers": [one(L40S), one(L4)]}, [B, A, FOUR]),  # the user's order; zones by price
        ({"offers": [one(L40S, "us-east-1a"), one(L40S)]}, [A, B]),  # each once, where it stands first
        ({"offers": [one(P5), one(L4)]}, [EIGHT, FOUR]),  # a larger type, where it is named
        (
            {"offers": [one(L4)], "market": "spot_then_on_demand"},
            [FOUR, f"{L4} us-east-1a on_demand"],
        ),
        (
            {"offers": "cheapest", "market": "spot_then_on_demand"},
            [FOUR, B, A, f"{L4} us-east-1a on_demand", f"{L40S} us-east-1a on_demand", f"{L40S} us-east-1b on_demand"],
        ),
        ({"offers": "cheapest", "max_price_usd_per_hour": 4.0}, [FOUR, B]),
        ({"offers": [one(P5, "us-east-1b"), one(G5), one("p9.huge")]}, []),
    ],
)
def test_offers_are_tried_in_the_order_of_the_file_or_by_price(keys: dict[str, Any], wanted: list[str]) -> None:
    found, _ = candidates(config(**keys), REGION)
    assert [candidate.title for candidate in found] == wanted


def test_cheapest_is_by_gpu() -> None:
    region = RegionMarket(
        {"a.big": 8, "b.small": 4}, {"a.big": ["us-east-1a"], "b.small": ["us-east-1a"]}, {}, {"a.big": 8.0}.get
    )
    found, _ = candidates(config(offers=[one("a.big")]), region)
    assert found[0].usd_per_gpu_hour == 1.0


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"offers": [one(P5, "us-east-1b")]}, f"{P5}: not offered in us-east-1b"),
        ({"offers": [one(G5)]}, f"{G5}: has 1 GPUs, 4 are wanted"),
        ({"offers": [one("p9.huge")]}, "p9.huge: not offered in this region, or without NVIDIA GPUs"),
        (
            {"offers": [one(L40S)], "max_price_usd_per_hour": 4.5},
            f"{A}: 5.00 USD/h is over max_price_usd_per_hour 4.50",
        ),
    ],
)
def test_what_is_left_out_is_said(keys: dict[str, Any], line: str) -> None:
    assert line in candidates(config(**keys), REGION)[1]


def test_an_unknown_price_is_never_0() -> None:
    blind = RegionMarket({L4: 4, L40S: 4}, {L4: ["us-east-1a"], L40S: ["us-east-1a"]}, {}, {L4: 4.6}.get)
    found, dropped = candidates(config(), blind)
    assert [(c.type, c.usd_per_hour) for c in found] == [(L4, 4.6)]  # the most that spot can cost
    assert "on-demand price taken" in found[0].why
    assert dropped == [f"{A}: no price is known (price_usd_per_hour in the cluster's file gives one)"]
    found, dropped = candidates(config(price_usd_per_hour=7.0), blind)
    assert [(c.type, c.usd_per_hour) for c in found] == [(L4, 4.6), (L40S, 7.0)]
    assert "price of the file" in found[1].why and not dropped


def candidate(title: str) -> Candidate:
    kind, zone, market = title.split()
    return Candidate(kind, zone, "spot" if market == "spot" else "on_demand", 4, 4.0, "offer 1 of the file")


def refusal(title: str, code: str, minutes_ago: float) -> Refusal:
    kind, zone, market = title.split()
    return Refusal(kind, zone, market, code, NOW - 60 * minutes_ago)


FULL = "InsufficientInstanceCapacity"


@pytest.mark.parametrize(
    ("refusals", "wanted"),
    [
        ([], [A, B, FOUR]),
        ([(A, FULL, 5)], [B, FOUR, A]),
        ([(A, FULL, 31)], [A, B, FOUR]),
        ([(A, PREEMPTED, 119)], [B, FOUR, A]),
        ([(A, PREEMPTED, 121)], [A, B, FOUR]),
        ([(A, FULL, 5), (B, FULL, 9)], [FOUR, B, A]),  # the longest ago first
        ([(A, PREEMPTED, 60), (A, FULL, 40)], [B, FOUR, A]),  # a refusal does not outshine a preemption
        ([(A, FULL, -5)], [A, B, FOUR]),  # a clock that was set back
        ([(A.replace("spot", "on_demand"), FULL, 5)], [A, B, FOUR]),
    ],
)
def test_who_refused_lately_comes_last(refusals: list[tuple[str, str, float]], wanted: list[str]) -> None:
    rows = ordered([candidate(t) for t in (A, B, FOUR)], [refusal(*r) for r in refusals], NOW)
    assert [c.title for c, _ in rows] == wanted


def test_the_reason_says_who_refused_and_when() -> None:
    (_, why), *_ = ordered([candidate(A)], [refusal(A, FULL, 12)], NOW)
    assert why == f"offer 1 of the file; {FULL} 12 min ago, so tried last"


def made(code: str, status: int = 400, attempts: str = "exceeded maximum number of attempts, 2, ") -> str:
    return (
        f"terraform apply failed: creating EC2 Instance: operation error EC2: RunInstances, {attempts}https response "
        f"error StatusCode: {status}, RequestID: 00000000-0000-4000-8000-000000000000, api error {code}: Some words."
    )


def unanswered(call: str, words: str) -> str:
    """Terraform's words where the network failed: `words` stand where an answer's code does."""
    return f"operation error EC2: {call}, https response error StatusCode: 200, RequestID: x, {words}"


LOST = "request send failed, Post: dial tcp: connect: connection refused"
TORN = "decomposing response: read tcp 10.0.0.1:2->10.0.0.1:80: use of closed network connection"
DIED = "terraform apply failed: waiting for EC2 Instance (i-1) create: unexpected state '{}', wanted target 'running'."


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (made(FULL, 500), Verdict(FULL, True)),
        (made(FULL, 500, ""), Verdict(FULL, True)),
        (made("Unsupported"), Verdict("Unsupported", True)),
        (made("SpotMaxPriceTooLow"), Verdict("SpotMaxPriceTooLow", True)),
        (made(f"Server.{FULL}", 500), Verdict(FULL, True)),
        (made("MaxSpotInstanceCountExceeded"), Verdict("MaxSpotInstanceCountExceeded", True, account_wide=True)),
        (made("VcpuLimitExceeded"), Verdict("VcpuLimitExceeded", True, account_wide=True)),
        (made("RequestLimitExceeded", 503), Verdict("RequestLimitExceeded", False, passing=True)),
        (made("SlowDown", 503), Verdict("SlowDown", False, passing=True)),
        (made("InvalidPermission.NotFound", 400), Verdict("InvalidPermission.NotFound", False, passing=True)),
        (made("RouteAlreadyExists", 400), Verdict("RouteAlreadyExists", False, passing=True)),
        (made("RequestLimitExceeded", 503) + "\n" + made(FULL, 500), Verdict(FULL, True)),
        (unanswered("DescribeInstances", TORN), Verdict(NETWORK, False, passing=True)),
        (unanswered("RunInstances", LOST), Verdict(NETWORK, False)),
        (unanswered("DescribeVpcs", TORN) + "\n" + unanswered("RunInstances", LOST), Verdict(NETWORK, False)),
        (LOST, Verdict(NETWORK, False)),
        (made("InvalidParameterValue"), Verdict("InvalidParameterValue", False)),
        (DIED.format("terminated") + " last error: Server.SpotInstanceTermination: x", Verdict(PREEMPTED, True)),
        (DIED.format("shutting-down"), Verdict(PREEMPTED, True)),
        # Another zone would not help against these.
        (
            DIED.format("terminated") + " last error: Client.VolumeLimitExceeded: Volume limit exceeded",
            Verdict("VolumeLimitExceeded", False),
        ),
        (
            DIED.format("terminated") + " last error: Client.InternalError: Client error on launch",
            Verdict("InternalError", False),
        ),
        ("terraform apply failed: no end within 900 s; ", Verdict("", False)),
        ("creating Tag with value 'InsufficientInstanceCapacity'", Verdict("", False)),
    ],
)
def test_a_refusal_says_whether_to_move_on(said: str, wanted: Verdict) -> None:
    assert verdict(said) == wanted


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "UnauthorizedOperation", "AccessDenied"])
def test_refused_credentials_are_said_to_be_that(code: str) -> None:
    found = verdict(made(code))
    assert (found.code, found.move_on, found.passing) == (code, False, False)
    assert "credentials" in found.message


@pytest.mark.parametrize("torn", [{}, {"type": "x"}, [], "x", None, {**vars(refusal(A, "x", 1)), "at_unix": "soon"}])
def test_a_torn_line_of_the_memory_is_passed_over(torn: object) -> None:
    read = lenient(of(Refusal))
    assert read(torn) is None
    assert read(vars(refusal(A, "x", 1))) == refusal(A, "x", 1)
