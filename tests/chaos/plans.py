"""The seeded plan of a nemesis: which faults, at which steps, where. Pure: a seed always gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import get_args

from tests.chaos.record import HOST_FAULTS, Fault, Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
MOST = 3


def kinds_for(local: bool, wanted: Sequence[str] = ()) -> list[Kind]:
    """Kinds that the rig can do. Raises ValueError for an unknown one, or for one that it cannot."""
    able = [kind for kind in KINDS if not local or kind not in HOST_FAULTS]
    if unknown := [kind for kind in wanted if kind not in able]:
        raise ValueError(f"no such fault here: {', '.join(unknown)}; there are {', '.join(able)}")
    return [kind for kind in able if not wanted or kind in wanted]


def plan(seed: int, steps: int, kinds: Sequence[Kind], nodes: int = 2, ranks_per_node: int = 2) -> tuple[Fault, ...]:
    """One to three faults. The first kind goes round with the seed, so that so many seeds cover every kind."""
    chance = random.Random(f"nexa {seed}")
    number = min(chance.choice((1, 1, 2, 2, 3)), MOST)
    chosen = [kinds[seed % len(kinds)], *(chance.choice(list(kinds)) for _ in range(number - 1))]
    first, last = max(2, steps // 6), steps * 3 // 4
    at = sorted(chance.randint(first, last) for _ in chosen)
    # One at most: two ends before a first step are a crash loop, and the policy gives up, rightly.
    soon = chance.randrange(1, number) if number > 1 and chance.random() < 0.3 else 0
    return tuple(
        _fault(chance, kind, step, index == soon > 0, nodes, ranks_per_node)
        for index, (kind, step) in enumerate(zip(chosen, at, strict=True))
    )


def _fault(chance: random.Random, kind: Kind, step: int, soon: bool, nodes: int, ranks_per_node: int) -> Fault:
    rank = chance.randrange(nodes * ranks_per_node)
    node = f"n{rank // ranks_per_node}" if kind in ("kill_rank", "freeze_rank") else f"n{chance.randrange(nodes)}"
    if kind in ("fill_disk", "flip_bit"):
        node = "n0"  # rank 0's, which saves
    lasting = {
        "cut_short": (3.0, 7.0), "cut_long": (45.0, 60.0), "notice": (20.0, 40.0), "fill_disk": (4.0, 8.0),
        "sleep_laptop": (20.0, 40.0), "kill_supervisor": (1.0, 12.0),
    }  # fmt: skip
    low, high = lasting.get(kind, (0.0, 0.0))
    seconds, after_s = round(chance.uniform(low, high), 1), 0.0
    if soon:
        # Not at a step, but soon after the one before: into the middle of its recovery.
        step, after_s = 0, round(chance.uniform(0.5, 10.0), 1)
    how = chance.choice(("attach", "resume")) if kind == "kill_supervisor" else ""
    return Fault(kind, step, node, rank, seconds, after_s, how)
