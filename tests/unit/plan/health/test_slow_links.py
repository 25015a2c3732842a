from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from nexa_dist.plan.health.fault import odd_ones
from nexa_dist.plan.health.slow_links import Slow, best_of, picture, slow


def table(count: int, good: float = 10.0, **changed: float) -> list[list[float | None]]:
    made: list[list[float | None]] = [[None if r == c else good for c in range(count)] for r in range(count)]
    for ends, value in changed.items():
        made[int(ends[1])][int(ends[2])] = value
    return made


def names(count: int) -> list[str]:
    return [f"n{i}" for i in range(count)]


def test_equal_links_are_fine_whatever_they_have() -> None:
    for count in range(1, 6):
        assert slow(names(count), table(count, 0.3)) == []


def test_two_nodes_are_held_against_the_way_back() -> None:
    assert slow(names(2), table(2, l10=4.0)) == [Slow("n1", "n0", 4.0, 10.0)]
    assert slow(names(2), table(2, l10=6.0)) == []


def test_of_three_nodes_the_one_that_is_slow_both_ways_is_named() -> None:
    """Four of six links are slow then, so the median of all of them would call it usual."""
    made = table(3, l10=1.0, l12=1.1, l01=1.2, l21=1.3)
    assert slow(names(3), made) == [Slow("n1", "", 1.3, 10.0)]


def test_a_node_that_only_sends_slowly_is_named_and_one_link_is_a_link() -> None:
    assert slow(names(4), table(4, l20=1.0, l21=1.0, l23=1.0)) == [Slow("n2", "", 1.0, 10.0)]
    assert slow(names(4), table(4, l20=1.0, l02=1.0)) == [Slow("n0", "n2", 1.0, 10.0), Slow("n2", "n0", 1.0, 10.0)]


def test_pairs_that_were_not_measured_are_passed_over() -> None:
    made = table(4, l20=1.0)
    made[1][3] = made[3][1] = None
    assert slow(names(4), made) == [Slow("n2", "n0", 1.0, 10.0)]


def test_a_floor_holds_for_all() -> None:
    assert slow(names(2), table(2, 0.8), floor_gbps=1.0) == [Slow("n0", "n1", 0.8, 0.8), Slow("n1", "n0", 0.8, 0.8)]


def test_a_link_whose_ends_had_no_cpu_is_not_slow() -> None:
    assert slow(names(3), table(3, l01=2.0), at_most=table(3, 20.0, l01=5.0)) == []
    assert slow(names(3), table(3, l01=2.0), at_most=table(3, 20.0, l01=4.9)) == [Slow("n0", "n1", 2.0, 10.0)]
    assert slow(names(2), table(2, 0.8), floor_gbps=1.0, at_most=table(2, 1.0)) == []


def test_of_two_tests_the_best_of_each_part_is_taken() -> None:
    def test(busbw: float, latency: float, left: int, matrix: list[list[float | None]]) -> dict[str, Any]:
        return {"busbw_gb_s": busbw, "latency_us": latency, "rounds_left": left, "matrix": matrix, "at_most": matrix,
                "seconds": busbw}  # fmt: skip

    first, again = test(1.0, 300.0, 1, [[None, 5.0], [None, None]]), test(0.9, 200.0, 0, [[None, 4.0], [9.0, None]])
    assert best_of(first, again) == {**test(1.0, 200.0, 0, [[None, 5.0], [9.0, None]]), "seconds": 0.9}
    assert best_of(first, {"errors": {"n1": "gone"}}) == first


def test_the_picture_is_svg_with_every_name_and_figure() -> None:
    made = table(3, l01=2.5)
    made[2][1] = None
    drawn = ElementTree.fromstring(picture("a <title>", names(3), made))
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "a <title>"
    assert [texts.count(name) for name in names(3)] == [2, 2, 2]
    assert texts.count("10") == 4 and texts.count("2.5") == 1 and texts.count("?") == 1


def test_the_odd_one_out() -> None:
    assert odd_ones({"n0": "a", "n1": "b", "n2": "b"}) == ("b", ["n0"])
    assert odd_ones({"n0": "a", "n1": "b"}) == ("a", ["n1"])
    assert odd_ones({}) == (None, [])
