"""What the flight recorders of the ranks say together. The numbers are as torch 2.13 tells them of NCCL's groups."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.node.watch.flight import groups
from nexa_dist.plan.failures.collectives import behind, words


def dump(enqueued: int, completed: int, op: str = "nccl:all_reduce", size: int = 8) -> dict[str, Any]:
    """The documented form of a dump, of the last two collectives. Made by hand: no GPU was there to make it."""
    entries = [
        {
            "pg_id": 0, "process_group": ("0", "default_pg"), "collective_seq_id": seq, "is_p2p": False,
            "profiling_name": op, "input_sizes": [[size]], "state": "completed" if seq <= completed else "started",
        }
        for seq in (enqueued - 1, enqueued)
    ]  # fmt: skip
    status = {
        "last_enqueued_collective": enqueued,
        "last_started_collective": enqueued,
        "last_completed_collective": completed,
    }
    return {"version": "2.10", "entries": entries, "pg_status": {"0": status}, "pg_config": {}}


def told(*dumps: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"event": "flight", "at": 1.0, "rank": rank, "groups": groups(one)} for rank, one in enumerate(dumps)]


@pytest.mark.parametrize(
    ("dumps", "late", "said"),
    [
        ((dump(9, 9), dump(9, 9)), set(), ()),
        (
            (dump(9, 8), dump(9, 8), dump(8, 8)),
            {2},
            ("ranks 0, 1 wait in all_reduce [[8]] number 9 of default_pg, to which rank 2 has not come (rank 2 ended"
             " with number 8)",),
        ),
        (
            (dump(9, 8), dump(9, 8, "nccl:broadcast")),
            set(),
            ("number 9 of default_pg is all_reduce [[8]] on rank 0, broadcast [[8]] on rank 1: every rank has to call"
             " the same ones in the same order",),
        ),
        (
            (dump(9, 8), dump(9, 8)),
            set(),
            ("ranks 0, 1, all that told, are in all_reduce [[8]] number 9 of default_pg: none is behind, so look at the"
             " network and the GPUs between them",),
        ),
        (
            (dump(9, 8), dump(9, 9)),
            set(),
            ("rank 0 did not come out of all_reduce [[8]] number 9 of default_pg, which is over on rank 1",),
        ),
    ],
)  # fmt: skip
def test_who_waits_for_whom(dumps: tuple[dict[str, Any], ...], late: set[int], said: tuple[str, ...]) -> None:
    events = told(*dumps)
    assert behind(events) == late
    assert words(events, range(len(dumps))) == tuple(f"collectives: {line}" for line in said)


def test_a_rank_without_a_dump_is_named() -> None:
    assert words(told(dump(9, 8), dump(8, 8)), range(4))[-1] == "collectives: ranks 2, 3 left no record"
    assert words([], range(4)) == ()
