from __future__ import annotations

import itertools

import pytest

from nexa_dist.remote.group_test import rounds, suspects, tries


@pytest.mark.parametrize("nodes", range(1, 10))
def test_in_a_tournament_each_meets_each_once_and_nobody_two_at_a_time(nodes: int) -> None:
    made = rounds(nodes)
    assert sorted(itertools.chain(*made)) == list(itertools.combinations(range(nodes), 2))
    assert len(made) == nodes - 1 + nodes % 2
    for pairs in made:
        met = list(itertools.chain(*pairs))
        assert len(met) == len(set(met))


def test_tries_fit_into_the_time_and_are_one_at_least() -> None:
    assert [tries(seconds, 1.0, 8) for seconds in (0.0, 0.1, 0.3, 5.0)] == [8, 8, 3, 1]


def test_slow_pairs_are_measured_again_the_slowest_first() -> None:
    table = [[None, 9.0, 4.0], [9.1, None, 1.0], [9.2, 9.3, None]]
    assert suspects(table, 0.0) == [(1, 2), (0, 2)]
    assert suspects([[None, 9.0], [9.0, None]], 0.0) == []
    assert suspects([[None, 0.9], [0.9, None]], 1.0) == [(0, 1)]
    assert suspects([[None]], 1.0) == []
