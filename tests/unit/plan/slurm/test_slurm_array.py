"""Arrays: their elements, and the parameters of each."""

from __future__ import annotations

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.plan.slurm.array import Array, array, elements

GRID = [{"trainer.seed": "1"}, {"trainer.seed": "2"}, {"trainer.seed": "3"}]


@pytest.mark.parametrize(
    ("text", "indices", "at_once", "again"),
    [
        ("0-3%2", (0, 1, 2, 3), 2, "0-3%2"),
        ("7", (7,), None, "7"),
        ("1,3,5-9:2,3", (1, 3, 5, 7, 9), None, "1,3,5,7,9"),
        ("4,0-1", (0, 1, 4), None, "0-1,4"),
    ],
)
def test_an_array_is_read_as_slurm_reads_it(
    text: str, indices: tuple[int, ...], at_once: int | None, again: str
) -> None:
    assert array(text) == Array(indices, at_once)
    assert array(text).text == again


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "0-3%", "0-3%0", "0-3%x", "1-4:0", "-1", "0-999999", "0--2", "0-3 %2"]
)
def test_what_is_no_array_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--array") as refused:
        array(text)
    assert "elements" in str(refused.value) or "--array 0-3%2" in refused.value.hint


def test_the_elements_are_the_points_of_the_grid() -> None:
    assert elements(None, [{}]) == (None, [{}])
    assert elements(None, GRID) == (Array((0, 1, 2)), GRID)
    assert elements(array("0,2%1"), GRID) == (Array((0, 2), 1), [GRID[0], GRID[2]])
    assert elements(array("0-2"), [{}]) == (Array((0, 1, 2)), [{}, {}, {}])


def test_an_element_beyond_the_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="no element 3, --grid has 3") as refused:
        elements(array("0-3"), GRID)
    assert "--array 0-2" in refused.value.hint
