"""Which checkpoints the nodes have whole, each by itself or together."""

from __future__ import annotations

from nexa_dist.ops.work.results import Kept, Left, wholes
from nexa_dist.train.shards.cover import Part


def kept(number: int, *, durable: bool = False) -> Kept:
    """What one of two nodes has of step 4: file `number` of two."""
    return Kept(
        4,
        f"/{'d' if durable else 's'}/step_00000004",
        f"{number}",
        8,
        durable,
        Part("both", 1, 2, frozenset({number}), 16),
    )


def test_shards_count_as_durable_when_the_durable_folders_hold_all_of_them() -> None:
    near = {f"n{number}": [kept(number)] for number in (0, 1)}

    def found(**more: list[Kept]) -> list[tuple[bool, list[str]]]:
        told = wholes({node: Left(True, checkpoints=[*rows, *more.get(node, [])]) for node, rows in near.items()})
        return [(one.durable, [node for node, _ in one.parts]) for one in told]

    assert found() == found(n0=[kept(0, durable=True)]) == [(False, ["n0", "n1"])]
    assert found(n0=[kept(0, durable=True)], n1=[kept(1, durable=True)])[1] == (True, ["n0", "n1"])
