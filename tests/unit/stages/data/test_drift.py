"""Drift of columns that have nothing to compare, one value, new values, or none at all."""

from __future__ import annotations

import datetime
import json
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

pl = pytest.importorskip("polars")

from nexa_dist.errors import NexaError  # noqa: E402
from nexa_dist.stages.data.statistics import drift, frames  # noqa: E402

MANY = list(range(1000))


def of(old: list[Any], new: list[Any]) -> dict[str, Any]:
    found = drift(*(pl.DataFrame({"x": side}, strict=False).lazy() for side in (old, new)))["x"]
    assert len(found["labels"]) == len(found["old"]) == len(found["new"])
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([5] * 1000, [7] * 1000),
        ([5.0] * 1000, [7.5] * 1000),
        ([5] * 1000, MANY),
        ([0.0] * 900 + [1.0] * 100, [2.0] * 1000),
        ([True] * 1000, [False] * 1000),
        (["a"] * 1000, ["b"] * 1000),
        (["a"] * 1000, ["a"] * 500 + ["unseen"] * 500),
        (MANY, [None] * 1000),
        ([None] * 1000, MANY),
        (["a", "b"] * 500, [None] * 1000),
        (MANY, [*MANY[::2], *[None] * 500]),
        ([float(one) for one in MANY], [float("nan")] * 500 + MANY[::2]),
        ([f"text {one}" for one in MANY], [f"a text of other length {one}" for one in MANY]),
        ([datetime.date(2020, 1, 1) + datetime.timedelta(one) for one in MANY],
         [datetime.date(2024, 1, 1) + datetime.timedelta(one) for one in MANY]),
    ],
)  # fmt: skip
def test_what_changed_is_told_and_what_did_not_is_not(old: list[Any], new: list[Any]) -> None:
    assert of(old, new)["psi"] > 0.25
    assert of(new, old)["psi"] > 0.25
    for same in (old, new):
        told = of(same, same)
        assert (told["psi"], told["ks"] or 0.0) == (0.0, 0.0)


def test_the_distance_of_a_constant_and_of_what_is_empty_is_by_the_formula() -> None:
    import math

    half = of(["a"] * 8, ["a", None] * 4)
    assert half["labels"] == ["a", "(empty)"]
    assert half["psi"] == pytest.approx(0.5 * math.log(2) + (0.5 - 1e-4) * math.log(0.5 / 1e-4), rel=1e-5)
    assert (of([1] * 10, [1] * 9 + [2])["ks"], of([1] * 10, [None] * 10)["ks"]) == (0.1, None)


def test_columns_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    old = pl.DataFrame({"gone": [1], "kind": [1], "list": [[1]], "day": [datetime.date(2020, 1, 1)], "none": [None]})
    new = pl.DataFrame({"came": [1], "kind": ["1"], "list": [[2]], "day": [3], "none": [None]})
    found = drift(old.lazy(), new.lazy())
    assert {name: one["of"] for name, one in found.items() if one["psi"] is None} == {
        "gone": "only in the old one", "kind": "Int64, now String", "list": "not compared: List(Int64)",
        "day": "Date, now Int64", "came": "only in the new one",
    }  # fmt: skip
    assert found["none"]["psi"] == 0.0
    for side in ((old, new), (new, old)):
        empty = drift(side[0].clear().lazy(), side[1].lazy())
        assert {one["psi"] for one in empty.values()} == {None}
    with pytest.raises(NexaError, match="has no file of rows"):
        frames(tmp_path)


def test_a_picture_of_any_data_is_xml(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from nexa_dist.ui.report.drift import drawn

    old = pl.DataFrame(
        {"<b>\x00$x_": ["\x01&<", "b", None] * 100, "n": list(range(300)), "c": [1] * 300, "gone": [1] * 300}
    )
    new = pl.DataFrame({"<b>\x00$x_": ["new\n"] * 300, "n": [None] * 300, "c": [2] * 300})
    found = drift(old.lazy(), new.cast({"n": pl.Int64}).lazy())
    assert json.loads(json.dumps(found)) == found
    picture = xml.etree.ElementTree.fromstring(drawn(found, "v1", "v2"))
    said = " ".join(picture.itertext())
    assert all(word in said for word in ("<b>·$x_", "·&<", "(empty)", "v2"))
    assert xml.etree.ElementTree.fromstring(drawn({}, "v1", "v2")).tag.endswith("svg")
