"""Which rank the others wait for."""

from __future__ import annotations

import pytest

from nexa_dist.straggler import straggler


@pytest.mark.parametrize(
    ("own_s", "named"),
    [
        ({}, None),
        ({0: 9.0}, None),
        ({0: 0.2, 1: 0.29}, None),  # less than 1.5 times
        ({0: 0.2, 1: 0.31}, 1),
        ({0: 0.01, 1: 0.04, 2: 0.01}, None),  # 30 ms
        ({0: 0.0, 1: 0.4}, 1),
        ({0: 0.5, 1: 0.2, 2: 0.2, 3: 0.21}, 0),
        ({0: 0.5, 1: 0.5, 2: 0.2}, None),  # most are slow: the quick one is the odd one
    ],
)
def test_a_rank_is_named_by_ratio_and_difference(own_s: dict[int, float], named: int | None) -> None:
    found = straggler(own_s)
    assert (found.rank if found else None) == named


def test_words_without_a_median_stay_short() -> None:
    found = straggler({0: 0.0, 1: 4000.0})
    assert found is not None and found.words.startswith("rank 1 takes 999.0 × the median's own time a step")
