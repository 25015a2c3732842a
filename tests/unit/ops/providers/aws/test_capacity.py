"""The search for somebody who has the nodes: what it tries, gives back, waits for and remembers."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.ops.providers.aws.capacity import BUSY_WAITS_S, memory_file, patiently, search
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.run.terraform.stack import TerraformFailed
from tests.unit.cloud_server import Desk, config

FULL, ACCOUNT, WRONG, BUSY = (
    "InsufficientInstanceCapacity",
    "VcpuLimitExceeded",
    "InvalidParameterValue",
    "RequestLimitExceeded",
)
OFFERS = ("a.x us-east-1a spot", "a.x us-east-1b spot", "a.x us-east-1a on_demand", "b.x us-east-1a spot")


def failed(code: str) -> TerraformFailed:
    words = (
        f"operation error EC2: RunInstances, https response error StatusCode: 500, RequestID: x, api error {code}: no"
    )
    return TerraformFailed(f"terraform apply failed: creating EC2 Instance: {words}", hint="run again")


def candidate(title: str) -> Candidate:
    kind, zone, market = title.split()
    return Candidate(kind, zone, "spot" if market == "spot" else "on_demand", 4, 4.0)


class Cloud:
    """Who refuses how; `log` is what the search did, in order."""

    def __init__(self, desk: Desk, answers: Callable[[str, float], str]) -> None:
        self.desk, self.answers, self.log = desk, answers, list[str]()

    def look(self) -> list[tuple[Candidate, str]]:
        return [(candidate(title), "why") for title in OFFERS]

    def create(self, wanted: Candidate) -> None:
        code = self.answers(wanted.title, sum(self.desk.slept))
        self.log.append(wanted.title)
        if code:
            raise failed(code)

    def release(self) -> None:
        self.log.append("release")

    def search(self, minutes: float = 0.0) -> Candidate:
        wanted = config(wait_for_capacity_minutes=minutes)
        return search(self.desk.ctx, wanted, self.look, self.create, self.release)


def test_it_moves_on_and_gives_back_before_each_next_try(desk: Desk) -> None:
    cloud = Cloud(desk, lambda title, _: "" if title == OFFERS[2] else FULL)
    assert cloud.search().title == OFFERS[2]
    assert cloud.log == [OFFERS[0], "release", OFFERS[1], "release", OFFERS[2]]
    assert desk.slept == []
    assert f"  trying {OFFERS[0]}: 4.00 USD/h a node, 1.00 a GPU; why" in desk.said
    records = [json.loads(line) for line in memory_file(desk.ctx).read_text().splitlines()]
    assert [f"{r['type']} {r['zone']} {r['market']} {r['code']}" for r in records] == [
        f"{t} {FULL}" for t in OFFERS[:2]
    ]


def test_a_limit_of_the_account_passes_over_the_other_zones_of_that_type_and_market(desk: Desk) -> None:
    cloud = Cloud(desk, lambda title, _: ACCOUNT if title == OFFERS[0] else FULL)
    with pytest.raises(NexaError, match="no capacity for 2 nodes"):
        cloud.search()
    assert [step for step in cloud.log if step != "release"] == [OFFERS[0], OFFERS[2], OFFERS[3]]


@pytest.mark.parametrize("code", [WRONG, BUSY])
def test_anything_else_stops_with_the_gang_given_back(desk: Desk, code: str) -> None:
    cloud = Cloud(desk, lambda *_: code)
    with pytest.raises(NexaError, match=code) as caught:
        cloud.search(minutes=60)
    assert cloud.log == [OFFERS[0], "release"] and desk.slept == []
    assert caught.value.hint == "run again" and not memory_file(desk.ctx).exists()


def test_refused_credentials_are_said_first(desk: Desk) -> None:
    with pytest.raises(NexaError, match=r"^the cloud refuses these credentials"):
        Cloud(desk, lambda *_: "UnauthorizedOperation").search()


def test_an_error_of_ours_is_not_taken_for_a_refusal(desk: Desk) -> None:
    def broken(wanted: Candidate) -> None:
        raise NexaError(f"api error {FULL}: of a policy's words")

    cloud = Cloud(desk, lambda *_: "")
    with pytest.raises(NexaError, match="policy"):
        search(desk.ctx, config(), cloud.look, broken, cloud.release)
    assert cloud.log == []


def test_it_waits_longer_and_longer_within_its_limit(desk: Desk) -> None:
    cloud = Cloud(desk, lambda *_: FULL)
    with pytest.raises(NexaError) as caught:
        cloud.search(minutes=10)
    assert desk.slept == [15, 30, 60, 120, 120, 120, 120]
    assert sum(desk.slept) <= 600
    assert all(f"{title}: {FULL}" in str(caught.value) for title in OFFERS)
    assert "wait_for_capacity_minutes" in caught.value.hint
    assert cloud.log.count(OFFERS[0]) == 8 == cloud.log.count("release") / 4


def test_it_takes_what_comes_free_while_it_waits(desk: Desk) -> None:
    cloud = Cloud(desk, lambda title, waited: "" if title == OFFERS[1] and waited >= 45 else FULL)
    assert cloud.search(minutes=10).title == OFFERS[1]
    assert desk.slept == [15, 30] and cloud.log[-1] == OFFERS[1]


@pytest.mark.parametrize("code", ["VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "InstanceLimitExceeded"])
def test_nobody_waits_for_a_quota(desk: Desk, code: str) -> None:
    cloud = Cloud(desk, lambda *_: code)
    with pytest.raises(NexaError, match="the account's quota has no room for 2 nodes") as caught:
        cloud.search(minutes=60)
    assert desk.slept == [] and [step for step in cloud.log if step != "release"] == [OFFERS[0], *OFFERS[2:]]
    assert f"{OFFERS[0]}: {code}: no" in str(caught.value)
    assert "more vCPUs" in caught.value.hint and "wait_for" not in caught.value.hint


def test_what_a_quota_forbids_is_not_tried_again_while_the_others_are_waited_for(desk: Desk) -> None:
    cloud = Cloud(desk, lambda title, waited: ACCOUNT if title != OFFERS[3] else "" if waited else FULL)
    assert cloud.search(minutes=1).title == OFFERS[3]
    assert [step for step in cloud.log if step != "release"] == [OFFERS[0], *OFFERS[2:], OFFERS[3]]


@pytest.mark.parametrize("code", ["AddressLimitExceeded", "VpcLimitExceeded", "OptInRequired", "InvalidSubnet.Range"])
def test_what_every_offer_would_meet_is_met_once(desk: Desk, code: str) -> None:
    cloud = Cloud(desk, lambda *_: code)
    with pytest.raises(NexaError, match=f"{code}: no"):
        cloud.search(minutes=60)
    assert cloud.log == [OFFERS[0], "release"] and desk.slept == []


def test_nothing_is_waited_for_unless_it_is_asked(desk: Desk) -> None:
    with pytest.raises(NexaError):
        Cloud(desk, lambda *_: FULL).search()
    assert desk.slept == []


@pytest.mark.parametrize(
    ("codes", "slept", "error"),
    [
        ([], [], ""),
        ([BUSY, BUSY], [2, 5], ""),
        ([BUSY, FULL], [2], FULL),
        ([WRONG], [], WRONG),
        ([BUSY] * 9, list(BUSY_WAITS_S), BUSY),
    ],
)
def test_a_busy_cloud_is_asked_again_and_not_for_ever(
    desk: Desk, codes: list[str], slept: list[float], error: str
) -> None:
    left = list(codes)

    def apply() -> None:
        if left:
            raise failed(left.pop(0))

    if error:
        with pytest.raises(TerraformFailed, match=error):
            patiently(desk.ctx, apply)
    else:
        patiently(desk.ctx, apply)
    assert desk.slept == slept
