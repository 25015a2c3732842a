"""A grid is every combination of its values, in one order; its picture shows each run that has a loss."""

from __future__ import annotations

import re

import pytest
from pydantic import TypeAdapter

from nexa_dist.config.train import Tag
from nexa_dist.errors import UsageError
from nexa_dist.plan.runs.grid import MOST_POINTS, Dot, picture, points, tag


def test_the_first_key_changes_slowest() -> None:
    assert points(["a.b=x, y", "c=1,2"]) == [
        {"a.b": "x", "c": "1"}, {"a.b": "x", "c": "2"}, {"a.b": "y", "c": "1"}, {"a.b": "y", "c": "2"},
    ]  # fmt: skip
    assert points([]) == [{}]


def test_a_comma_within_a_list_or_quotes_divides_nothing() -> None:
    assert points(["args=[a, b],[c]", "n='x,y',z"])[0] == {"args": "[a, b]", "n": "'x,y'"}
    assert points(["args+=--lr=1,--lr=2"]) == [{"args+": "--lr=1"}, {"args+": "--lr=2"}]


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a="], ["a=1,,2"], ["a=1,1"], ["a=1", "a=2"], [""]])
def test_what_is_no_grid_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--grid"):
        points(texts)


def test_a_grid_has_an_end() -> None:
    values = ",".join(map(str, range(MOST_POINTS // 2)))
    assert len(points([f"a={values}", "b=1,2"])) == MOST_POINTS
    with pytest.raises(UsageError, match="at most"):
        points([f"a={values}", "b=1,2,3"])


@pytest.mark.parametrize("key, value", [("a.b", "1e-3"), ("args+", "--lr=1 x"), ("k" * 80, "ü\n$(x)")])
def test_every_point_makes_a_tag(key: str, value: str) -> None:
    assert TypeAdapter(Tag).validate_python(tag(key, value)).startswith("grid:")
    assert tag("a.b", "1e-3") == "grid:a.b=1e-3"


def test_the_picture_has_a_panel_for_each_parameter_that_varies() -> None:
    grid = [(rate, seed) for rate in ("1e-4", "1e-2", "1") for seed in ("0", "1")]
    made = picture("<lab>", [Dot({"lr": r, "seed": s, "one": "1"}, float(r) + int(s)) for r, s in grid])
    assert "&lt;lab&gt;" in made and "lowest loss 0.0001: lr=1e-4, seed=0" in made
    assert (made.count("<g "), made.count("<circle"), made.count("<polyline")) == (2, 12, 5)
    across = [float(x) for x in re.findall(r'<text x="([0-9.]+)" y="236"', made.partition("</g>")[0])]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1])  # equal factors, equal distances


@pytest.mark.parametrize("dots", [[], [Dot({"a": "1"}, 1.0)], [Dot({"a": "1"}, 1.0), Dot({"a": "2"}, float("nan"))]])
def test_nothing_to_compare_is_no_picture(dots: list[Dot]) -> None:
    assert picture("x", dots) == ""


def test_words_and_equal_losses_have_places_too() -> None:
    assert picture("x", [Dot({"opt": "adam"}, 1.0), Dot({"opt": "sgd"}, 1.0)]).count("<circle") == 2
