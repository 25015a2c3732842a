"""A snapshot is named by its content, and what differs between two is said by its place."""

from __future__ import annotations

from typing import Any

from nexa_dist.plan.runs.snapshot import differences, digest

NODE: dict[str, Any] = {"kernel": "6.1", "packages": {"libc6": "2.36", "gone": "1"}, "freeze": {"torch": "2.13.0+cpu"}}
BEFORE: dict[str, Any] = {"version": 1, "cluster": {"name": "lab"}, "nodes": {"n0": NODE}, "at_unix": 1.0}
AFTER: dict[str, Any] = {
    **BEFORE,
    "nodes": {"n0": {"kernel": "6.2", "packages": {"libc6": "2.36", "new": "2"}, "freeze": NODE["freeze"]}},
    "at_unix": 2.0,
}


def test_the_same_cluster_has_the_same_name_tomorrow() -> None:
    assert digest({**BEFORE, "at_unix": 9.0, "sha256": "x"}) == digest(BEFORE)
    assert digest(dict(reversed(BEFORE.items()))) == digest(BEFORE)
    assert digest(AFTER) != digest(BEFORE)
    assert differences(BEFORE, {**BEFORE, "at_unix": 9.0}) == []


def test_each_difference_has_its_place_and_both_values() -> None:
    assert [str(one) for one in differences(BEFORE, AFTER)] == [
        "nodes n0 kernel: 6.1 → 6.2",
        "nodes n0 packages gone: 1 → none",
        "nodes n0 packages new: none → 2",
    ]
