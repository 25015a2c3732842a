"""What is asked before anything is made, and what is said when it may not be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.ops.providers.aws import limits as aws_limits
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.run.aws.client import Refused
from tests.unit.cloud_server import config, scope

TYPE: dict[str, Any] = {
    "VCpuInfo": {"DefaultVCpus": 48},
    "SupportedUsageClasses": ["spot", "on-demand"],
    "NetworkInfo": {"NetworkCards": [{}], "EfaSupported": False},
}
ROWS = [(Candidate(kind, "us-east-1a", "spot", 4, 1.0), "why") for kind in ("g5.12xlarge", "p4d.24xlarge")]
VALUES = {"L-3819A6DF": 96.0, "L-7212CCBC": 96.0, "L-F678F1CE": 5.0}


class Account:
    """An account with `VALUES`; what is in `denied` it may not ask."""

    def __init__(self, denied: tuple[str, ...] = (), vpcs: tuple[int, bool] = (1, False), fault: str = "") -> None:
        self.denied, self.there, self.fault, self.used = denied, vpcs, fault, dict[tuple[str, str], int]()

    def _ask(self, operation: str, answer: Any) -> Any:
        if operation in self.denied:
            raise Refused("asking", "UnauthorizedOperation", "You may not.", operation=operation)
        return answer

    def value(self, service: str, code: str) -> Any:
        return self._ask("GetServiceQuota", VALUES[code])

    def types(self, named: list[str]) -> Any:
        return self._ask("DescribeInstanceTypes", [{**TYPE, "InstanceType": name} for name in named])

    def vcpus(self, owner: str, cluster: str) -> Any:
        return self._ask("DescribeInstances", self.used)

    def vpcs(self, owner: str, cluster: str) -> Any:
        return self._ask("DescribeVpcs", self.there)

    def image_fault(self, image: str, volume_gb: int) -> Any:
        return self._ask("DescribeImages", self.fault)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Account]:
    def made(**how: Any) -> Account:
        found = Account(**how)
        monkeypatch.setattr(aws_limits, "Limits", lambda region: found)
        return found

    return made


def test_what_the_quotas_have_no_room_for_is_left_out(account: Callable[..., Account]) -> None:
    mine = account()
    assert aws_limits.within(config(), scope(), ROWS) == (ROWS, [], [])
    mine.used = {("p3.2xlarge", "spot"): 8, ("g5.xlarge", "on_demand"): 4}
    kept, dropped, _ = aws_limits.within(config(), scope(), ROWS)
    assert kept == ROWS[:1] and "leaves 88" in dropped[0] and "L-7212CCBC" in dropped[0]
    mine.used = {("p3.2xlarge", "spot"): 8, ("g5.xlarge", "spot"): 4}
    with pytest.raises(NexaError, match=r"may have none of the offers: g5.*leaves 92") as caught:
        aws_limits.within(config(), scope(), ROWS)
    assert "servicequotas" in caught.value.hint and "waiting changes nothing" in caught.value.hint


def test_what_may_not_be_asked_stops_nobody_and_the_right_is_named(account: Callable[..., Account]) -> None:
    account(denied=("GetServiceQuota", "DescribeInstances", "DescribeInstanceTypes", "DescribeVpcs", "DescribeImages"))
    kept, dropped, unasked = aws_limits.within(config(), scope(), ROWS)
    assert (kept, dropped) == (ROWS, [])
    unasked += aws_limits.refuse_impossible(config(), scope())
    for right in ("ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeVpcs", "ec2:DescribeImages"):
        assert any(f"{right} is not allowed" in line for line in unasked), right
    assert sum("servicequotas:GetServiceQuota is not allowed" in line for line in unasked) == 2


@pytest.mark.parametrize(
    ("how", "keys", "said"),
    [
        ({}, {}, ""),
        ({"fault": "is pending, not available"}, {}, "image ami-01234567 is pending"),
        ({"vpcs": (5, False)}, {}, "has 5 VPCs, and quota L-F678F1CE"),
        ({"vpcs": (5, True)}, {}, ""),  # one of them is the cluster's
        ({"vpcs": (5, False)}, {"vpc": "vpc-01234567", "vpc_cidr": "10.1.0.0/16"}, ""),
    ],
)
def test_what_cannot_be_is_refused(account: Callable[..., Account], how: Any, keys: dict[str, Any], said: str) -> None:
    account(**how)
    if not said:
        assert aws_limits.refuse_impossible(config(**keys), scope()) == []
        return
    with pytest.raises(NexaError, match=said):
        aws_limits.refuse_impossible(config(**keys), scope())
