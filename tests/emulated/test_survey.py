"""What is on offer in a region, the most promising first."""

from __future__ import annotations

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.ops.providers.aws.capacity import memory_file, remember, survey
from nexa_dist.run.aws import client as aws_client
from tests.unit.cloud_server import HOME, Desk, Emulated, config, scope


def test_survey_of_a_region(desk: Desk, emulated_region: Emulated) -> None:
    price = emulated_region.control.price
    for zone, usd in (("a", 3.0), ("b", 2.0), ("c", 4.0), ("d", 9.0), ("e", 9.0), ("f", 9.0)):
        price("g5.12xlarge", f"us-east-1{zone}", usd)
    wanted = config(offers=[{"type": "g5.12xlarge"}], max_price_usd_per_hour=5.0, wait_for_capacity_minutes=0)
    rows, dropped = survey(desk.ctx, wanted, scope())
    cheapest = rows[0][0]
    assert (cheapest.gpus, cheapest.usd_per_hour, cheapest.market) == (4, 2.0, "spot")
    assert [c.zone for c, _ in rows] == [
        z for z in ("us-east-1b", "us-east-1a", "us-east-1c") if z in {c.zone for c, _ in rows}
    ]
    assert all("over max_price_usd_per_hour" in line for line in dropped)

    remember(desk.ctx, cheapest.title, "InsufficientInstanceCapacity")
    memory_file(desk.ctx).open("a").write('{"torn": \n[]\n')
    rows, _ = survey(desk.ctx, wanted, scope())
    assert rows[-1][0] == cheapest and rows[-1][1].endswith("0 min ago, so tried last")


def test_survey_with_no_offer_left_says_why(
    desk: Desk, emulated_region: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(offers=[{"type": "g5.xlarge"}, {"type": "g9.nothing"}])
    with pytest.raises(NexaError, match=r"g5.xlarge: has 1 GPUs, 4 are wanted; g9.nothing: not offered"):
        survey(desk.ctx, wanted, scope())
    monkeypatch.setattr(aws_client.Cloud, "gpus", lambda *_: {"g5.12xlarge": 4})
    with pytest.raises(NexaError, match="no type with 7 GPUs is offered"):
        survey(desk.ctx, config(gpus_per_node=7), scope(region=HOME))
