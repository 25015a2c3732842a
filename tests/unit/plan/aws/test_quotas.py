"""Which quota counts an offer, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.plan.aws.quotas import ADDRESSES, Kind, Quota, judged, kind_of, quota_of, wanted
from tests.unit.cloud_server import config

BOTH = frozenset({"spot", "on_demand"})
KINDS = {
    "g5.12xlarge": Kind(48, BOTH, 1),
    "p4d.24xlarge": Kind(96, BOTH, 4),
    "g4.old": Kind(8, frozenset({"on_demand"}), 0),
}
G_SPOT, P_SPOT = quota_of("g5.12xlarge", "spot"), quota_of("p4d.24xlarge", "spot")
assert G_SPOT and P_SPOT
G5, P4 = "g5.12xlarge us-east-1a spot", "p4d.24xlarge us-east-1a spot"


def rows(*titles: str) -> list[tuple[Candidate, str]]:
    made = []
    for title in titles:
        kind, zone, market = title.split()
        made.append((Candidate(kind, zone, "spot" if market == "spot" else "on_demand", 4, 1.0), "why"))
    return made


@pytest.mark.parametrize(
    ("kind", "market", "code"),
    [
        ("g6e.12xlarge", "spot", "L-3819A6DF"),
        ("gr6.4xlarge", "on_demand", "L-DB2E81BA"),
        ("p3.8xlarge", "spot", "L-7212CCBC"),
        ("p4d.24xlarge", "on_demand", "L-417A185B"),
        ("p5en.48xlarge", "spot", "L-C4BD4855"),
        ("p6-b200.48xlarge", "on_demand", "L-417A185B"),
        ("p6-b200.48xlarge", "spot", ""),  # nobody has said which one
        ("trn1.32xlarge", "spot", ""),
    ],
)
def test_what_counts_an_offer(kind: str, market: str, code: str) -> None:
    found = quota_of(kind, market)
    assert (found.code if found else "") == code


@pytest.mark.parametrize(
    ("keys", "titles", "left", "said"),
    [
        ({}, [G5], {G_SPOT: 96}, []),
        (
            {},
            [G5],
            {G_SPOT: 95},
            ["96 vCPUs are needed, and quota L-3819A6DF (All G and VT Spot Instance Requests) leaves 95"],
        ),
        ({}, [G5], {G_SPOT: -4}, ["leaves 0"]),
        ({}, [G5], {}, []),  # not known: nobody is refused
        ({}, [P4, G5], {P_SPOT: 0, G_SPOT: 96}, [f"{P4}: 192 vCPUs"]),
        ({"efa": True}, [P4], {ADDRESSES: 1}, ["2 Elastic IPs are needed, and quota L-0263D0A3"]),
        ({"efa": False}, [P4], {ADDRESSES: 1}, []),
        ({"efa": True}, [G5], {ADDRESSES: 1}, []),  # one interface: a public address of its own
        ({"efa": True}, ["g4.old us-east-1a on_demand"], {}, ["no EFA"]),
        ({}, ["g4.old us-east-1a spot"], {}, ["does not sell it by spot"]),
        ({}, ["x9.new us-east-1a spot"], {}, []),
    ],
)
def test_what_is_left_decides(
    keys: dict[str, Any], titles: list[str], left: dict[Quota, float], said: list[str]
) -> None:
    kept, dropped = judged(config(**keys), rows(*titles), KINDS, left)
    assert len(dropped) == len(said) and all(part in line for part, line in zip(said, dropped, strict=True))
    assert [c.title for c, _ in kept] == [t for t in titles if not any(line.startswith(t) for line in dropped)]


def test_only_what_counts_an_offer_is_asked() -> None:
    assert wanted(config(), rows(G5), KINDS) == {G_SPOT}
    assert wanted(config(efa=True), rows(P4), KINDS) == {P_SPOT, ADDRESSES}
    assert wanted(config(), rows("x9.new us-east-1a spot"), KINDS) == set()


@pytest.mark.parametrize(
    ("cards", "efa", "interfaces"), [(1, 1, 1), (4, 4, 4), (16, 16, 16), (32, 16, 17), (8, 8, 8), (1, 0, 0)]
)
def test_interfaces_are_as_the_stack_takes_them(cards: int, efa: int, interfaces: int) -> None:
    network = {"NetworkCards": [{}] * cards, "EfaSupported": efa > 0, "EfaInfo": {"MaximumEfaInterfaces": efa}}
    row = {"VCpuInfo": {"DefaultVCpus": 8}, "SupportedUsageClasses": ["spot", "capacity-block"], "NetworkInfo": network}
    assert kind_of(row) == Kind(8, frozenset({"spot"}), interfaces)
