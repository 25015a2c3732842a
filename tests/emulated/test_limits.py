"""What AWS allows and what is used of it, as the emulated region tells it."""

from __future__ import annotations

from nexa_dist.ops.providers.aws.limits import refuse_impossible, within
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.run.aws.limits import Limits
from tests.unit.cloud_server import HOME, Emulated, config, scope


def test_an_account_is_looked_at(emulated_region: Emulated) -> None:
    limits, image = Limits(HOME), emulated_region.image
    assert limits.value("vpc", "L-F678F1CE") == 1000
    assert limits.vpcs("ann", "c")[1] is False and limits.addresses("ann", "c") == 0
    before = limits.vcpus("ann", "c")
    for tags in ({"nexa:owner": "ann", "nexa:cluster": "c"}, {"nexa:owner": "ann", "nexa:cluster": "other"}):
        spec = [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}]
        asked = {"ImageId": image, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1}
        emulated_region.ec2.run_instances(**asked, TagSpecifications=spec)
    after = limits.vcpus("ann", "c")
    assert sum(after.values()) - sum(before.values()) in (0, 4), "the cluster's own are not counted against it"
    assert limits.image_fault(image, 200) == ""
    assert "is not" in limits.image_fault("ami-0123456789abcdef0", 200) or "InvalidAMIID" in limits.image_fault(
        "ami-0123456789abcdef0", 200
    )


def test_what_the_account_may_have_is_left_as_it_is(emulated_region: Emulated) -> None:
    rows = [(Candidate(kind, "us-east-1a", "spot", 4, 1.0), "why") for kind in ("g5.12xlarge", "p4d.24xlarge")]
    assert within(config(efa=True), scope(), rows) == (rows, [], [])


def test_a_denied_look_is_named_and_stops_nobody(emulated_region: Emulated) -> None:
    for call in ("GetServiceQuota", "DescribeVpcs"):
        emulated_region.control.fault("error", call=call, code="AccessDeniedException", status=400)
    rows = [(Candidate("g5.12xlarge", "us-east-1a", "spot", 4, 1.0), "why")]
    kept, dropped, unasked = within(config(), scope(), rows)
    assert (kept, dropped) == (rows, []) and "servicequotas:GetServiceQuota is not allowed" in unasked[0]
    lines = refuse_impossible(config(), scope(image=emulated_region.image))
    assert lines == ["VPCs: ec2:DescribeVpcs is not allowed"]
