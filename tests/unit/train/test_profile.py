"""What a profile says, and which steps it is of."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.config.trainer import ProfileConfig
from tests.late import Late, needs

needs("torch")
profile: Any = Late("nexa_dist.train.profile")

EVEN = {"wall": 0.1, "data": 0.01, "forward": 0.03, "backward": 0.05, "optimizer": 0.01, "save": 0.0}


class Event:
    def __init__(self, key: str, cpu_s: float, device_s: float = 0.0) -> None:
        self.key, self.cpu_time_total, self.device_time_total = key, cpu_s * 1e6, device_s * 1e6


def test_the_steps_that_are_asked_for() -> None:
    assert ProfileConfig(steps="20-25").range(1000) == (20, 25)
    assert ProfileConfig(steps=5).range(1000) == (11, 15)
    assert ProfileConfig(steps=5).range(12) == (8, 12)
    assert ProfileConfig(steps=50).range(12) == (1, 50)
    with pytest.raises(ValueError, match="FIRST is not after"):
        ProfileConfig(steps="9-8")


def test_seconds_a_step_by_part() -> None:
    events = [
        Event("nexa.step", 0.8), Event("nexa.forward", 0.3), Event("Optimizer.step#AdamW.step", 0.1),
        Event("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 0.05), Event("gloo:all_reduce", 0.2),
        Event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 0.0, 0.1), Event("aten::mm", 0.4), Event("nexa.save", 0.5),
    ]  # fmt: skip
    told = profile.seconds(events, 2.0, 2)
    assert told == pytest.approx(
        {
            "wall": 1.0, "data": 0.025, "forward": 0.15, "backward": 0.25, "optimizer": 0.05, "save": 0.25,
            "communication": 0.15, "own": 0.85,
        }
    )  # fmt: skip


def test_the_rank_that_the_others_wait_for_is_named() -> None:
    ranks = [{**EVEN, "communication": 0.06, "own": 0.04}] * 3
    lines = profile.words(20, 25, [*ranks, {**EVEN, "communication": 0.01, "own": 0.09}])
    assert lines[0] == "profile of steps 20 to 25: 100 ms a step"
    assert lines[4] == (
        "  rank 3: data 10, forward 30, backward 50, optimizer 10, communication 10 ms; its own work 90 ms"
    )
    assert lines[5] == "  rank 3 is the slowest by 2.2 × the median; the others wait for it"
    assert "no rank holds the others up" in profile.words(20, 25, ranks)[-1]
    assert len(profile.words(1, 1, ranks[:1])) == 2
