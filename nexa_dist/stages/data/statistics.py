"""Figures of a dataset by column, and how far those of another version are from them: PSI and Kolmogorov-Smirnov."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nexa_dist.errors import NexaError
from nexa_dist.stages.data.read import files_of

BINS = 10
FEW = 50
"""Values of a column, at most, that are bins of their own."""
OFTEN = 4
"""Rows a value, at least, of such a column."""
ROWS = 1_000_000
"""Rows of each side that are compared: every n-th, evenly, of more."""
EMPTY = "(empty)"
"""Label of the bin of rows without a value."""
LEAST = 1e-4
"""Share of an empty bin, so that its logarithm is finite."""


def frames(folder: Path) -> pl.LazyFrame:
    """All rows of a version, or of a folder of Parquet files."""
    parts = sorted(folder.glob("*/*.parquet")) if (folder / "manifest.json").exists() else []
    parts = [path for path in parts if path.parent.name != "packed"] or files_of(folder)
    if any(path.suffix != ".parquet" for path in parts):
        raise NexaError(f"{folder} holds no Parquet", hint="a version that the data stage made does")
    return pl.scan_parquet(parts, missing_columns="insert", extra_columns="ignore")


def measured(rows: pl.LazyFrame) -> dict[str, dict[str, Any]]:
    """Of each column: kind, empty values, and the figures of its numbers, or of its texts' lengths in characters.
    Memory: some 20 bytes a row, however long the texts are; a column after the other."""
    found: dict[str, dict[str, Any]] = {}
    for name, kind in rows.collect_schema().items():
        asked = [pl.len().alias("rows"), pl.col(name).null_count().alias("empty")]
        if kind == pl.String:
            asked.append(pl.col(name).approx_n_unique().alias("distinct"))
        told = rows.select(asked).collect(engine="streaming").row(0, named=True)
        if (value := _number(name, kind)) is not None and not kind.is_temporal():
            numbers = rows.select(value).collect(engine="streaming").to_series()
            told |= {"min": numbers.min(), "mean": numbers.mean(), "std": numbers.std()}
            told |= {f"p{q * 100:.0f}": numbers.quantile(q) for q in (0.05, 0.5, 0.95)}
            told["max"] = numbers.max()
        figures = {key: float(f"{one:.6g}") if isinstance(one, float) else one for key, one in told.items()}
        found[name] = {"kind": str(kind), **figures}
    return found


def drift(old: pl.LazyFrame, new: pl.LazyFrame) -> dict[str, dict[str, Any]]:
    """By column: PSI (the sum over bins of (p - q)·ln(p / q), bins by deciles of `old`, or by value of a column of few,
    and one of the rows without a value where there are any), the KS statistic of the values (the largest distance of
    the two cumulative distributions) and the shares of the bins with their labels, for a picture. A column that only
    one has, has values of another kind in the other, or of a kind that has no order, has no figures: `of` says why."""
    before, after = old.collect_schema(), new.collect_schema()
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*before, *after)):
        if name not in before or name not in after:
            found[name] = _none("only in the new one" if name in after else "only in the old one")
            continue
        # All of it empty, a column has no kind: that of the other is as good.
        kinds = [kind for kind in (before[name], after[name]) if kind != pl.Null] or [pl.Null()]
        value = _number(name, kinds[0])
        if len({_sort(kind) for kind in kinds}) > 1:
            found[name] = _none(f"{kinds[0]}, now {kinds[-1]}")
        elif value is None or _number(name, kinds[-1]) is None:
            found[name] = _none(f"not compared: {kinds[0]}")
        else:
            mine, its = (rows.with_columns(pl.col(name).cast(kinds[0]) if kind == pl.Null else pl.col(name))
                         for rows, kind in ((old, before[name]), (new, after[name])))  # fmt: skip
            text = kinds[0] == pl.String
            found[name] = _by_value(mine, its, name, value, text) or _by_number(mine, its, value, text)
    return found


def _none(of: str) -> dict[str, Any]:
    return {"psi": None, "ks": None, "bins": [], "labels": [], "old": [], "new": [], "of": of}


def _sort(kind: Any) -> str:
    """What kinds have in common that can be compared."""
    return str(kind) if kind == pl.String or kind.is_temporal() else "number"


def _number(name: str, kind: Any) -> pl.Expr | None:
    if kind == pl.String:
        return pl.col(name).str.len_chars().cast(pl.Float64)
    if kind.is_temporal():
        return pl.col(name).cast(pl.Int64).cast(pl.Float64)
    return pl.col(name).cast(pl.Float64) if kind.is_numeric() or kind in (pl.Boolean, pl.Null) else None


def _values(rows: pl.LazyFrame, value: pl.Expr) -> tuple[np.ndarray, int]:
    """Sorted values that are numbers, and how many rows have none."""
    size = int(rows.select(pl.len()).collect().item())
    step = max(1, math.ceil(size / ROWS))
    taken = rows.select(value.gather_every(step)).collect(engine="streaming").to_series()
    numbers = taken.drop_nulls()
    numbers = numbers.filter(numbers.is_finite())
    return np.sort(numbers.to_numpy()), len(taken) - len(numbers)


def _by_value(old: pl.LazyFrame, new: pl.LazyFrame, name: str, value: pl.Expr, text: bool) -> dict[str, Any] | None:
    """Bins by value, of a column that has few; None of another. `value` is its number."""
    counts = []
    for rows in (old, new):
        kept = pl.col(name) if text or not rows.collect_schema()[name].is_float() else pl.col(name).fill_nan(None)
        told = rows.group_by(kept).len().sort("len", descending=True).limit(FEW + 2).collect(engine="streaming")
        counts.append({one: int(count) for one, count in told.iter_rows()})
    there = [len(one) - (None in one) for one in counts]
    if max(there) > FEW or not any(there) or not all(sum(one.values()) >= len(one) * OFTEN for one in counts):
        return None
    known = sorted({*counts[0], *counts[1]} - {None})
    shown = [*known, *([None] if None in counts[0] or None in counts[1] else [])]
    ks = None if text else _ks(*(_values(rows, value)[0] for rows in (old, new)))
    labels = [EMPTY if one is None else str(one) for one in shown]
    p, q = ([one.get(each, 0) for each in shown] for one in counts)
    return {**_told(p, q), "ks": ks, "bins": [str(one) for one in known], "labels": labels, "of": "values"}


def _by_number(old: pl.LazyFrame, new: pl.LazyFrame, value: pl.Expr, lengths: bool) -> dict[str, Any]:
    (mine, mine_empty), (its, its_empty) = _values(old, value), _values(new, value)
    edges = np.empty(0)
    if len(mine):
        deciles = np.quantile(mine, np.linspace(0, 1, BINS + 1))
        often = deciles[1:][deciles[1:] == deciles[:-1]]  # has a bin of its own: a constant is seen to change
        edges = np.unique(np.concatenate((deciles[1:-1], often, np.nextafter(often, np.inf))))
    p, q = (np.bincount(np.searchsorted(edges, one, side="right"), minlength=len(edges) + 1).tolist()
            for one in (mine, its))  # fmt: skip
    labels = [*(f"<{edge:g}" for edge in edges), "above"]
    if mine_empty or its_empty:
        p, q, labels = [*p, mine_empty], [*q, its_empty], [*labels, EMPTY]
    if not sum(p) or not sum(q):
        return _none("no rows")
    bins = [float(f"{edge:.6g}") for edge in edges]
    of = "lengths" if lengths else "numbers"
    return {**_told(p, q), "ks": _ks(mine, its), "bins": bins, "labels": labels, "of": of}


def _ks(old: np.ndarray, new: np.ndarray) -> float | None:
    if not len(old) or not len(new):
        return None
    points = np.concatenate((old, new))
    mine, its = (np.searchsorted(one, points, side="right") / len(one) for one in (old, new))
    return round(float(np.abs(mine - its).max()), 6)


def _told(old: Sequence[int], new: Sequence[int]) -> dict[str, Any]:
    p, q = (np.array(one, float) / max(sum(one), 1) for one in (old, new))
    low, high = np.maximum(p, LEAST), np.maximum(q, LEAST)
    psi = float(((high - low) * np.log(high / low)).sum())
    return {"psi": round(psi, 6), "old": p.round(6).tolist(), "new": q.round(6).tolist()}
