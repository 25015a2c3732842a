"""Runs of words as hashes, MinHash signatures of them, and the rows that are near an earlier one.

The permutations and the bands are datasketch's; the signatures of a whole batch are computed at once by numpy, by
datasketch's formula (scheme "legacy"): (a·h + b) mod (2^61 - 1), its low 32 bits, and the least over the shingles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from nexa_dist.stages.whole import remove

EXPONENT = np.uint64(61)
PRIME = np.uint64((1 << 61) - 1)
LOW = np.uint64((1 << 32) - 1)
MIX = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 1 << 13
"""Rows of signatures that are compared at once: a bound on memory."""
TEXTS = 2000
"""Texts whose signatures are computed at once, so that their hashes stay in the processor's cache."""


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

    factors = MinHash(permutations, seed, scheme="legacy").permutations
    out = np.empty((len(starts), permutations), np.uint32)
    for at in range(0, len(starts), TEXTS):
        begins = starts[at : at + TEXTS]
        low = hashes[begins[0] : starts[at + TEXTS] if at + TEXTS < len(starts) else len(hashes)] & LOW
        for column, (a, b) in enumerate(zip(*factors, strict=True)):
            with np.errstate(over="ignore"):
                made = low * a + b
            # x mod (2^61 - 1) without a division: 2^61 is 1 there, so the upper three bits are added to the lower 61.
            made = (made & PRIME) + (made >> EXPONENT)
            made -= np.where(made >= PRIME, PRIME, np.uint64(0))
            out[at : at + TEXTS, column] = np.minimum.reduceat(made & LOW, begins - begins[0])
    return out


def bands(permutations: int, threshold: float) -> tuple[int, int]:
    """Number of bands and rows of each that datasketch's LSH finds best for a threshold, where a pair that is missed
    weighs nine times one that is looked at in vain: `_compare` looks, and drops nothing that is not like."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.1, 0.9))
    return int(lsh.b), int(lsh.r)


def near_duplicates(
    parts: Iterator[np.ndarray], rows: int, threshold: float, scratch: Path, beat: Callable[[], object]
) -> np.ndarray:
    """Whether each row's signature is as like an earlier one's as `threshold`: compared are the first row and the one
    before in each band's bucket. Memory: some 50 bytes a row, however long a signature is; the signatures and the keys
    of each band are files in the folder `scratch`."""
    dropped, shape, count, depth = np.zeros(rows, bool), (rows, 0), 0, 0
    remove(scratch)
    scratch.mkdir()
    for part in parts:
        if not count:
            shape, (count, depth) = (rows, part.shape[1]), bands(part.shape[1], threshold)
        _append(scratch / "signatures", part)
        for band in range(count):
            _append(scratch / f"{band}", _keys(part[:, band * depth : (band + 1) * depth]))
        beat()
    for band in range(count):
        keys = np.fromfile(scratch / f"{band}", np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        new = np.append(True, keys[1:] != keys[:-1])
        later = np.flatnonzero(~new)
        starts = np.flatnonzero(new)
        heads = starts[np.searchsorted(starts, later, side="right") - 1]
        for others in (heads, later - 1):
            _compare(scratch / "signatures", shape, order[later], order[others], threshold, dropped)
        beat()
    remove(scratch)
    return dropped


def _append(path: Path, values: np.ndarray) -> None:
    with path.open("ab") as file:
        values.tofile(file)


def _keys(band: np.ndarray) -> np.ndarray:
    keys = np.zeros(len(band), np.uint64)
    with np.errstate(over="ignore"):
        for column in band.T:
            keys = keys * MIX + column
            keys ^= keys >> np.uint64(29)
    return keys


def _compare(
    path: Path, shape: tuple[int, int], one: np.ndarray, other: np.ndarray, threshold: float, dropped: np.ndarray
) -> None:
    for at in range(0, len(one), BLOCK):
        table = np.memmap(path, np.uint32, "r", shape=shape)  # anew: what was read of it is not ours any more
        mine, its = one[at : at + BLOCK], other[at : at + BLOCK]
        open_ = ~dropped[mine]
        mine, its = mine[open_], its[open_]
        like = (table[mine] == table[its]).mean(axis=1)
        dropped[mine[like >= threshold]] = True
