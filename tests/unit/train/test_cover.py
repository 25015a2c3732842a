"""Which steps the nodes hold together, by what their folders say alone; and folders of one step that are joined."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.train import checkpoint
from nexa_dist.train.shards import cover as lib
from nexa_dist.train.shards.cover import Cover, Part, cover
from nexa_dist.train.shards.join import join
from tests import shards
from tests.shards import NAMES


def part(path: Path) -> Part:
    made = lib.part_of(checkpoint.manifest(path))
    assert made is not None and not checkpoint.verify(path)
    return made


@pytest.fixture
def held(tmp_path: Path) -> dict[str, Part]:
    """Two nodes without replicas."""
    return {"A": part(shards.write(tmp_path / "A", NAMES[:2])), "B": part(shards.write(tmp_path / "B", NAMES[2:]))}


def test_two_nodes_hold_it_together_and_one_alone_does_not(held: dict[str, Part]) -> None:
    both = cover(held)
    assert isinstance(both, Cover)
    assert both.holders == (("A",), ("A",), ("B",), ("B",)) and both.enough() == ["A", "B"]
    assert cover({"A": held["A"]}) == "2 of its 4 files are on no node"
    assert cover({}) == "no node holds it whole"
    assert cover({"A": held["A"], "C": held["A"]}) == "2 of its 4 files are on no node"


def test_with_replicas_any_node_may_go(tmp_path: Path) -> None:
    three = {"A": [0, 1, 3], "B": [1, 2], "C": [2, 3, 0]}
    held = {name: Part("d" * 64, 1, 4, frozenset(has)) for name, has in three.items()}
    for gone in three:
        assert isinstance(cover({name: one for name, one in held.items() if name != gone}), Cover)
    assert isinstance(cover({"A": held["A"]}), str)
    found = cover(held)
    assert isinstance(found, Cover) and found.enough() == ["A", "C"]


def test_shards_of_two_saves_do_not_go_together(tmp_path: Path, held: dict[str, Part]) -> None:
    other = part(shards.write(tmp_path / "other", NAMES[2:], text="y", attempt=2))
    assert other.digest != held["A"].digest
    assert cover({"A": held["A"], "B": other}) == (
        "its shards are of 2 saves, and none is whole: 2 of its 4 files are on no node, 2 of its 4 files are on no node"
    )
    third = part(shards.write(tmp_path / "third", NAMES, text="y", attempt=2))
    found = cover({**held, "C": third, "D": other})
    assert isinstance(found, Cover) and found.digest == third.digest, "of two that are whole the later"
    found = cover({**held, "D": other})
    assert isinstance(found, Cover) and found.digest == held["A"].digest


def test_the_same_files_are_one_save_whatever_attempt_wrote_them(tmp_path: Path, held: dict[str, Part]) -> None:
    again = part(shards.write(tmp_path / "again", NAMES[2:], attempt=2))
    assert isinstance(cover({"A": held["A"], "B": again}), Cover)
    later = part(shards.write(tmp_path / "later", NAMES[2:], step=50))
    assert isinstance(cover({"A": held["A"], "B": later}), str)


def test_a_row_of_a_stranger_claims_no_more_files_than_there_are(held: dict[str, Part]) -> None:
    assert Part.of_row(held["A"].row()) == held["A"] and Part.of_row(None) is None
    lie = Part.of_row({**held["A"].row(), "has": [0, 1, 2, 3, 4, 99]})
    assert lie is not None and lie.is_all and max(lie.has) == 3
    assert cover({"A": Part("d" * 64, 1, 0, frozenset())}) == "0 of its 0 files are on no node"


def test_a_checkpoint_that_is_not_sharded_has_no_part(tmp_path: Path) -> None:
    plain = checkpoint.write(tmp_path, 7, lambda path: (path / "w").write_text("w") and None, {"attempt": 1})
    assert lib.part_of(checkpoint.manifest(plain)) is None
    assert checkpoint.identity(checkpoint.manifest(plain)) == checkpoint.digest(plain)


def test_what_another_node_had_is_joined_to_what_is_here(tmp_path: Path) -> None:
    here, there = shards.write(tmp_path / "run", NAMES[:2]), shards.write(tmp_path / "aside", NAMES[2:])
    made = join(there, tmp_path / "run")
    assert made == here and not checkpoint.verify(here) and part(here).is_all and not there.exists()
    assert [path.name for path in here.parent.iterdir()] == [here.name]
    (here / "a_0").write_text("damaged")
    made = join(shards.write(tmp_path / "aside", NAMES[2:]), tmp_path / "run")
    assert part(made).has == {2, 3}
    there = shards.write(tmp_path / "aside", NAMES[2:])
    (there / "b_2").write_text("damaged")
    with pytest.raises(NexaError, match="b_2: 7 bytes, expected 4"):
        join(there, tmp_path / "run")
    assert part(made).has == {2, 3} and there.exists()
    made = join(shards.write(tmp_path / "another", NAMES[:2], text="of another save"), tmp_path / "run")
    assert part(made).has == {0, 1} and not checkpoint.verify(made)
