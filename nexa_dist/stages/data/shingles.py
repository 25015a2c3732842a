"""Runs of words as hashes, MinHash signatures of them, and the rows that are near an earlier one.

The permutations and the bands are datasketch's; the signatures of a whole batch are computed at once by numpy, by
datasketch's formula (scheme "legacy"): (a·h + b) mod (2^61 - 1), its low 32 bits, and the least over the shingles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

PRIME = np.uint64((1 << 61) - 1)
LOW = np.uint64((1 << 32) - 1)
MIX = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 1 << 16
"""Rows of signatures that are compared at once: a bound on memory."""


def shingles(texts: pl.Series, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of every run of so many words of each text, all behind one another, and where each text begins.
    A text of fewer words has one, of all of them. Case and punctuation do not count."""
    lists = texts.str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+")
    lengths = np.maximum(lists.list.len().to_numpy(), 1).astype(np.int64)
    # An empty list explodes into one null, whose hash is as good as any.
    flat = lists.explode(empty_as_null=True).hash(0).to_numpy()
    ends = np.cumsum(lengths)
    begins = ends - lengths
    end = np.repeat(ends, lengths)
    at = np.arange(len(flat))
    made = np.zeros(len(flat), np.uint64)
    with np.errstate(over="ignore"):
        for step in range(words):
            inside = at + step < end
            made = made * MIX + np.where(inside, flat[np.minimum(at + step, len(flat) - 1)], np.uint64(0))
            made ^= made >> np.uint64(29)
    whole = (at + words <= end) | (at == np.repeat(begins, lengths))
    counts = np.add.reduceat(whole, begins) if len(begins) else np.empty(0, np.int64)
    return made[whole], np.cumsum(counts) - counts


def signatures(hashes: np.ndarray, starts: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """MinHash signatures, uint32 (texts, permutations), as datasketch's MinHash has them of the low 32 bits."""
    from datasketch import MinHash  # which takes a second to import, and is of use here alone

    a, b = MinHash(permutations, seed, scheme="legacy").permutations
    low = hashes & LOW
    out = np.empty((len(starts), permutations), np.uint32)
    with np.errstate(over="ignore"):
        for at in range(permutations):
            out[:, at] = np.minimum.reduceat((low * a[at] + b[at]) % PRIME & LOW, starts)
    return out


def bands(permutations: int, threshold: float) -> tuple[int, int]:
    """Number of bands and rows of each that datasketch's LSH finds best for a threshold."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=permutations)
    return int(lsh.b), int(lsh.r)


def near_duplicates(
    parts: Iterator[np.ndarray], rows: int, threshold: float, scratch: Path, beat: Callable[[], object]
) -> np.ndarray:
    """Whether each row's signature is as like an earlier one's as `threshold`: compared are the first row and the one
    before in each band's bucket. Memory: 16 bytes a row; the signatures are in `scratch`, a file."""
    dropped = np.zeros(rows, bool)
    first = next(parts, None)
    if first is None:
        return dropped
    width = first.shape[1]
    table = np.memmap(scratch, np.uint32, "w+", shape=(rows, width))
    at = 0
    for part in itertools.chain((first,), parts):
        table[at : at + len(part)] = part
        at += len(part)
        beat()
    count, depth = bands(width, threshold)
    for band in range(count):
        keys = _band(table, band * depth, depth)
        order = np.argsort(keys, kind="stable")
        new = np.append(True, keys[order][1:] != keys[order][:-1])
        head = order[np.maximum.accumulate(np.where(new, np.arange(rows), 0))]
        later = np.flatnonzero(~new)
        for others in (head[later], order[later - 1]):
            _compare(table, order[later], others, threshold, dropped)
        beat()
    del table
    scratch.unlink(missing_ok=True)
    return dropped


def _band(table: np.ndarray, begin: int, depth: int) -> np.ndarray:
    keys = np.zeros(len(table), np.uint64)
    with np.errstate(over="ignore"):
        for at in range(0, len(table), BLOCK):
            for column in table[at : at + BLOCK, begin : begin + depth].T:
                block = keys[at : at + BLOCK]
                block *= MIX
                block += column
                block ^= block >> np.uint64(29)
    return keys


def _compare(table: np.ndarray, one: np.ndarray, other: np.ndarray, threshold: float, dropped: np.ndarray) -> None:
    for at in range(0, len(one), BLOCK):
        mine, its = one[at : at + BLOCK], other[at : at + BLOCK]
        open_ = ~dropped[mine]
        mine, its = mine[open_], its[open_]
        like = (table[mine] == table[its]).mean(axis=1)
        dropped[mine[like >= threshold]] = True
