"""A rank's own time a step, with a clock that is passed in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nexa_dist.train.profile import OwnTime


class Slow(torch.nn.Module):
    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, seconds: float) -> float:
        self.clock[0] += seconds
        return seconds


def batches(clock: list[float], waits: list[float]) -> Iterator[float]:
    for wait in waits:
        clock[0] += wait
        yield wait


@pytest.mark.parametrize(("forward", "told"), [(True, [0.75, 0.75, 0.75, 1.0]), (False, [0.25, 0.25, 0.25, 0.5])])
def test_data_and_forward_count_and_neither_backward_nor_evaluation_does(forward: bool, told: list[float]) -> None:
    clock = [0.0]
    model = Slow(clock)
    own = OwnTime(model, forward=forward, cuda=False, clock=lambda: clock[0])
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
