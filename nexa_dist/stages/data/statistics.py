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
"""Values of a text column that are taken for categories."""
OFTEN = 4
"""Rows a value, at least, of such a column."""
ROWS = 1_000_000
"""Rows of each side that are compared: every n-th, evenly, of more."""
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
    """Of each column: kind, empty values, and the figures of its numbers, or of its texts' lengths in characters."""
    found: dict[str, dict[str, Any]] = {}
    for name, kind in rows.collect_schema().items():
        value = _number(name, kind)
        asked = [pl.len().alias("rows"), pl.col(name).null_count().alias("empty")]
        if value is not None:
            asked += [
                value.min().alias("min"), value.mean().alias("mean"), value.std().alias("std"),
                *(value.quantile(q).alias(f"p{q * 100:.0f}") for q in (0.05, 0.5, 0.95)), value.max().alias("max"),
            ]  # fmt: skip
            if kind == pl.String:
                asked.append(pl.col(name).approx_n_unique().alias("distinct"))
        row = rows.select(asked).collect(engine="streaming").row(0, named=True)
        figures = {key: float(f"{one:.6g}") if isinstance(one, float) else one for key, one in row.items()}
        found[name] = {"kind": str(kind), **figures}
    return found


def drift(old: pl.LazyFrame, new: pl.LazyFrame) -> dict[str, dict[str, Any]]:
    """By column that both have: PSI (the sum over bins of (p - q)·ln(p / q), bins by deciles of `old`, or by value of
    a column of few texts), the KS statistic (the largest distance of the two cumulative distributions) and the shares
    of the bins, for a picture."""
    before, after = old.collect_schema(), new.collect_schema()
    found: dict[str, dict[str, Any]] = {}
    for name, kind in before.items():
        if name in after and (value := _number(name, kind)) is not None and _number(name, after[name]) is not None:
            if kind == after[name] == pl.String and (told := _by_category(old, new, name)):
                found[name] = told
            else:
                found[name] = _by_number(_values(old, value), _values(new, value), kind == pl.String)
    return found


def _number(name: str, kind: Any) -> pl.Expr | None:
    if kind == pl.String:
        return pl.col(name).str.len_chars().cast(pl.Float64)
    return pl.col(name).cast(pl.Float64) if kind.is_numeric() or kind == pl.Boolean else None


def _values(rows: pl.LazyFrame, value: pl.Expr) -> np.ndarray:
    size = int(rows.select(pl.len()).collect().item())
    step = max(1, math.ceil(size / ROWS))
    taken = rows.select(value.gather_every(step)).collect(engine="streaming").to_series().drop_nulls()
    return np.sort(taken.filter(taken.is_finite()).to_numpy())


def _by_category(old: pl.LazyFrame, new: pl.LazyFrame, name: str) -> dict[str, Any] | None:
    counts = []
    for rows in (old, new):
        told = rows.group_by(name).len().sort("len", descending=True).limit(FEW + 1).collect(engine="streaming")
        counts.append({str(value): int(count) for value, count in told.iter_rows()})
    if not all(0 < len(one) <= FEW and sum(one.values()) >= len(one) * OFTEN for one in counts):
        return None
    labels = sorted({*counts[0], *counts[1]})
    p, q = ([one.get(label, 0) for label in labels] for one in counts)
    return {**_told(p, q), "ks": None, "bins": labels, "of": "values"}


def _by_number(old: np.ndarray, new: np.ndarray, lengths: bool) -> dict[str, Any]:
    of = "lengths" if lengths else "numbers"
    if not len(old) or not len(new):
        return {"psi": None, "ks": None, "bins": [], "old": [], "new": [], "of": of}
    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)))[1:-1]
    p, q = (np.bincount(np.searchsorted(edges, one, side="right"), minlength=len(edges) + 1) for one in (old, new))
    points = np.concatenate((old, new))
    steps = (np.searchsorted(one, points, side="right") / len(one) for one in (old, new))
    ks = float(np.abs(next(steps) - next(steps)).max())
    return {**_told(p.tolist(), q.tolist()), "ks": round(ks, 6), "bins": [float(f"{e:.6g}") for e in edges], "of": of}


def _told(old: Sequence[int], new: Sequence[int]) -> dict[str, Any]:
    p, q = (np.array(one, float) / max(sum(one), 1) for one in (old, new))
    low, high = np.maximum(p, LEAST), np.maximum(q, LEAST)
    psi = float(((high - low) * np.log(high / low)).sum())
    return {"psi": round(psi, 6), "old": p.round(6).tolist(), "new": q.round(6).tolist()}
