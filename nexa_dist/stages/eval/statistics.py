"""Intervals and agreement. Pure; every draw follows from the seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 2000
Array = Any


def interval(values: Sequence[float], seed: int, share: float = 0.95) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean (Efron 1979, https://doi.org/10.1214/aos/1176344552); None for fewer
    than two values, which say nothing of their spread."""
    found = np.asarray(values, dtype=float)
    return _drawn(len(found), lambda at: found[at].mean(axis=1), seed, share)


def ratio_interval(above: Sequence[float], below: Sequence[float], seed: int) -> tuple[float, float] | None:
    """The same of Σ above / Σ below, whose rows are drawn together."""
    over, under = np.asarray(above, dtype=float), np.asarray(below, dtype=float)

    def ratio(at: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return over[at].sum(axis=1) / under[at].sum(axis=1)

    return _drawn(len(over), ratio, seed, 0.95)


def _drawn(
    count: int, of: Callable[[Array], Array], seed: int, share: float, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Interval of a figure of `count` rows; `of` answers it for each row of an array of drawn indices."""
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // count)
    """Draws at a time: their indices are to fit into 32 MB."""
    found = [of(rng.integers(count, size=(min(step, draws - at), count))) for at in range(0, draws, step)]
    told = np.concatenate(found)
    told = told[np.isfinite(told)]
    if not len(told):
        return None
    low, high = np.quantile(told, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def described(values: Sequence[float | None], seed: int) -> dict[str, Any]:
    """count, missing, mean and 95 % interval of a column."""
    known = [value for value in values if value is not None]
    told: dict[str, Any] = {"count": len(known), "missing": len(values) - len(known), "mean": None, "interval": None}
    if known:
        told |= {"mean": float(np.mean(known)), "interval": interval(known, seed)}
    return told


def agreement(judge: Sequence[float | None], people: Sequence[float | None], seed: int) -> dict[str, Any]:
    """How a judge's scores agree with labels of people, of the rows that have both: Spearman's rank correlation
    (average ranks for ties), the mean absolute difference, and the share of pairs that both order alike, of those that
    people order (0.5 is what a coin does)."""
    both = [(a, b) for a, b in zip(judge, people, strict=True) if a is not None and b is not None]
    told: dict[str, Any] = {"rows": len(both), "spearman": None, "difference": None, "ordered_alike": None,
                            "ordered_alike_interval": None}  # fmt: skip
    if len(both) < 3:
        return told
    a, b = np.asarray(both, dtype=float).T
    told |= {"difference": float(np.abs(a - b).mean()), "spearman": _spearman(a, b), "ordered_alike": _alike(a, b)}

    def alike(at: Array) -> Array:
        return np.asarray([_alike(a[one], b[one]) for one in at], dtype=float)

    return told | {"ordered_alike_interval": _drawn(len(both), alike, seed, 0.95, draws=500)}


def ranks_badly(told: Mapping[str, Any]) -> bool:
    """Tell whether the judge may order rows no better than a coin, as far as the labels can say."""
    low = (told["ordered_alike_interval"] or (0.0,))[0]
    return bool(told["ordered_alike"] is None or low <= 0.5)


def _spearman(a: Array, b: Array) -> float | None:
    a, b = _ranks(a), _ranks(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else None


def _ranks(values: Array) -> Array:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + last + 1) / 2)[place]


MOST_PAIRS_OF = 1000
"""Rows of which all pairs are compared."""


def _alike(a: Array, b: Array) -> float | None:
    a, b = a[:MOST_PAIRS_OF], b[:MOST_PAIRS_OF]
    one, other = np.triu_indices(len(a), 1)
    order = np.sign(b[one] - b[other])
    ordered = order != 0
    if not ordered.any():
        return None
    agree = np.sign(a[one] - a[other])[ordered] * order[ordered]
    return float(((agree + 1) / 2).mean())  # a tie of the judge's is half of each
