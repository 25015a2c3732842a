"""The array of a job: which elements it has, and which parameters each one gets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nexa_dist.errors import UsageError

RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6})(?::([0-9]{1,6}))?)?")
MOST = 1000
"""Elements, as many as Slurm's MaxArraySize is by default, less one."""
HINT = "--array 0-3%2: elements 0 to 3, two at once; 1,4,9 and 0-8:2 too"


@dataclass(frozen=True)
class Array:
    """Elements of an array in their order; `at_once` is how many may run together, None for all."""

    indices: tuple[int, ...]
    at_once: int | None = None

    @property
    def text(self) -> str:
        """The value of sbatch's --array."""
        parts: list[list[int]] = []
        for index in self.indices:
            if parts and parts[-1][1] == index - 1:
                parts[-1][1] = index
            else:
                parts.append([index, index])
        words = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
        return words + (f"%{self.at_once}" if self.at_once else "")


def array(text: str) -> Array:
    """`0-3%2`, `1,3,5-9:2`: each element once, in ascending order. Raises UsageError."""
    listed, percent, limit = text.partition("%")
    if percent and not (limit.isascii() and limit.isdigit() and int(limit[:6]) > 0):
        raise UsageError(f"--array {text}: %{limit} is no number of elements", hint=HINT)
    found: set[int] = set()
    for part in listed.split(","):
        span = RANGE.fullmatch(part)
        first, last, step = (int(word) if word else None for word in span.groups()) if span else (None, None, None)
        if first is None or (last is not None and last < first) or step == 0:
            raise UsageError(f"--array {text}: {part!r} is no element and no range", hint=HINT)
        within = range(first, (first if last is None else last) + 1, step or 1)
        if len(within) > MOST or len(found) + len(within) > 2 * MOST:
            raise UsageError(f"--array {text}: more than {MOST} elements")
        found |= set(within)
    if len(found) > MOST:
        raise UsageError(f"--array {text}: more than {MOST} elements")
    return Array(tuple(sorted(found)), int(limit) if percent else None)


def elements(wanted: Array | None, points: Sequence[Mapping[str, str]]) -> tuple[Array | None, list[Mapping[str, str]]]:
    """The array, and the parameters of each of its elements, in order; of a grid element i is point i, and without
    --array all of them are wanted. (None, [{}]) for a job that is no array. Raises UsageError."""
    grid = any(points)
    if wanted is None:
        return (Array(tuple(range(len(points)))), list(points)) if grid else (None, [{}])
    if not grid:
        return wanted, [{}] * len(wanted.indices)
    if beyond := [index for index in wanted.indices if index >= len(points)]:
        raise UsageError(
            f"--array {wanted.text}: there is no element {beyond[0]}, --grid has {len(points)}",
            hint=f"--array 0-{len(points) - 1}, or leave it out",
        )
    return wanted, [points[index] for index in wanted.indices]
