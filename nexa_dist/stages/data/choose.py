"""Which of the clean rows are taken, and the part of the dataset that each belongs to. Deterministic in the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import polars as pl

from nexa_dist.errors import EXIT_USAGE, NexaError
from nexa_dist.stages.data.config import Sample, Split
from nexa_dist.stages.row_files import rounded


def sampled(keep: np.ndarray, sample: Sample | None, by: pl.Series | None, seed: int) -> tuple[np.ndarray, list[str]]:
    """The mask with only the sampled rows, and words about quotas that cannot be met. `by` has every row's value."""
    if sample is None:
        return keep, []
    there = np.flatnonzero(keep)
    if sample.policy == "first":
        return _mask(len(keep), there[: sample.rows]), []
    order = np.random.Generator(np.random.PCG64(seed)).permutation(there)
    if sample.policy == "random":
        return _mask(len(keep), order[: sample.rows]), []
    assert by is not None
    values = by.cast(pl.String).fill_null("").to_numpy()[order]
    wanted: Mapping[str, int] = sample.quotas
    if sample.policy == "stratified":
        names, counts = np.unique(values, return_counts=True)
        wanted = shares(dict(zip(map(str, names), map(int, counts), strict=True)), sample.rows or 0)
    taken, short = [np.empty(0, np.int64)], []
    for name, count in sorted(wanted.items()):
        found = order[values == name][:count]
        taken.append(found)
        if len(found) < count:
            short.append(f"{sample.by} {name}: {len(found)} rows of {count} wanted")
    return _mask(len(keep), np.concatenate(taken)), short


def shares(counts: Mapping[str, int], rows: int) -> dict[str, int]:
    """`rows` divided as the counts are, whole numbers."""
    total = sum(counts.values())
    rows = min(rows, total)
    return rounded({name: rows * count / total for name, count in counts.items()} if total else {}, rows)


def parts_of(groups: pl.Series, split: Split, seed: int) -> np.ndarray:
    """Number of the part of each row, by a hash of its group: what other rows there are does not matter."""
    edges = np.cumsum(list(split.parts.values()))
    salt = f"{seed}\0".encode()
    known: dict[str, int] = {}
    for group in groups.unique().to_list():
        digest = hashlib.blake2b(salt + str(group).encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        known[group] = min(int(np.searchsorted(edges, place, side="right")), len(edges) - 1)
    return np.fromiter((known[group] for group in groups.to_list()), np.int8, len(groups))


def _mask(size: int, rows: np.ndarray) -> np.ndarray:
    made = np.zeros(size, bool)
    made[rows] = True
    return made


def refuse_empty(kept: int, read: int, dropped: Mapping[str, int]) -> None:
    """Raises NexaError when nothing is left: an empty dataset is nobody's wish."""
    if not kept:
        why = ", ".join(f"{name} {count}" for name, count in dropped.items()) or "there were none"
        raise NexaError(f"of {read} rows none is left: {why}", hint="loosen the filters", code=EXIT_USAGE)
