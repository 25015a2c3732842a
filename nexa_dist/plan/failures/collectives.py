"""Which ranks wait in which collective, and who is behind: from the flight recorders of the ranks. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_LINES = 6

Told = Mapping[str, Any]


def by_group(events: Iterable[Told]) -> dict[str, dict[int, Told]]:
    """What each rank told of each process group."""
    found: dict[str, dict[int, Told]] = defaultdict(dict)
    for event in events:
        for group in event["groups"]:
            found[group["name"]][event["rank"]] = group
    return found


def behind(events: Iterable[Told]) -> set[int]:
    """Ranks that have not come to a collective in which others wait."""
    return {rank for group in by_group(events).values() for rank in _late(group)}


def words(events: Iterable[Told], ranks: Sequence[int]) -> tuple[str, ...]:
    """A line for each process group that stands still; `ranks` are those of the attempt."""
    found = by_group(events)
    lines = [line for name, group in sorted(found.items()) if (line := _of_group(name, group))]
    told = {rank for group in found.values() for rank in group}
    if silent := sorted(set(ranks) - told if lines else ()):
        lines.append(f"collectives: {_named(silent)} left no record")
    return tuple(lines[:MOST_LINES])


def _late(group: Mapping[int, Told]) -> list[int]:
    most = max(told["enqueued"] for told in group.values())
    return [rank for rank, told in group.items() if told["enqueued"] < most]


def _of_group(name: str, group: Mapping[int, Told]) -> str:
    """A sentence; empty when all that was enqueued has completed."""
    title = next((told["desc"] for told in group.values() if told["desc"] not in ("", "undefined")), f"group {name}")
    if late := _late(group):
        waiting = {rank: told for rank, told in group.items() if rank not in late}
        at = min(told["enqueued"] for told in group.values()) + 1
        what = next((_call(told) for told in waiting.values() if told["seq"] == at), "collective")
        last = ", ".join(f"rank {rank} ended with number {group[rank]['enqueued']}" for rank in sorted(late)[:4])
        return (
            f"collectives: {_named(waiting)} wait{'s' * (len(waiting) == 1)} in {what} number {at} of {title}, to which"
            f" {_named(late)} {'has' if len(late) == 1 else 'have'} not come ({last})"
        )
    waiting = {rank: told for rank, told in group.items() if told["completed"] < told["enqueued"]}
    if not waiting:
        return ""
    at = min(told["seq"] for told in waiting.values())
    calls: dict[str, list[int]] = defaultdict(list)
    for rank, told in waiting.items():
        if told["seq"] == at:
            calls[_call(told)].append(rank)
    if len(calls) > 1:
        each = ", ".join(f"{call} on {_named(ranks)}" for call, ranks in calls.items())
        return f"collectives: number {at} of {title} is {each}: every rank has to call the same ones in the same order"
    inside = f"{next(iter(calls))} number {at} of {title}"
    if len(waiting) < len(group):
        rest = _named(set(group) - set(waiting))
        return f"collectives: {_named(waiting)} did not come out of {inside}, which is over on {rest}"
    return (
        f"collectives: {_named(waiting)}, all that told, are in {inside}: none is behind, so look at the network and"
        " the GPUs between them"
    )


def _call(told: Told) -> str:
    return f"{told['op'].rpartition(':')[2]} {told['sizes']}"


def _named(ranks: Iterable[int]) -> str:
    many = sorted(ranks)
    shown = ", ".join(map(str, many[:16])) + (f" and {len(many) - 16} more" if len(many) > 16 else "")
    return f"rank {shown}" if len(many) == 1 else f"ranks {shown}"
