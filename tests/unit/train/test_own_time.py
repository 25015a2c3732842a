"""A rank's own time a step, with a clock that is passed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.late import Late

torch: Any = Late("torch")
profile: Any = Late("nexa_dist.train.profile")


def slow(clock: list[float]) -> Any:
    """A module whose forward takes the seconds that it is given."""

    class Slow(torch.nn.Module):  # type: ignore[misc]
        def forward(self, seconds: float) -> float:
            clock[0] += seconds
            return seconds

    return Slow()


def batches(clock: list[float], waits: list[float]) -> Iterator[float]:
    for wait in waits:
        clock[0] += wait
        yield wait


@pytest.mark.parametrize(("forward", "told"), [(True, [0.75, 0.75, 0.75, 1.0]), (False, [0.25, 0.25, 0.25, 0.5])])
def test_data_and_forward_count_and_neither_backward_nor_evaluation_does(forward: bool, told: list[float]) -> None:
    clock = [0.0]
    model = slow(clock)
    own = profile.OwnTime(model, forward=forward, cuda=False, clock=lambda: clock[0])
    said = []
    for batch in own.reading(
        batches(
            clock,
            [
                0.25,
                0.25,
                0.75,
                0.75,
            ],
        )
    ):
        model(0.5)
        clock[0] += 100.0  # backward and step, which wait for the others
        model.eval()
        model(7.0)
        model.train()
        assert batch
        said.append(own.step())
    assert said == told
