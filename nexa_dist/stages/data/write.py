"""Parts of the dataset as files of so many rows, and their windows of tokens.

Each file is whole or absent, and what is there is not made again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nexa_dist.errors import EXIT_USAGE, NexaError
from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.data.choose import parts_of
from nexa_dist.stages.data.config import DataConfig, Split
from nexa_dist.stages.data.pack import tokenizer, windows
from nexa_dist.stages.whole import whole

ALL = Split(parts={"train": 1.0})


class Stopped(Exception):
    """SIGTERM came; what is done stays."""


def heard(env: StageEnv) -> None:
    """Raises Stopped after SIGTERM."""
    if env.stop():
        raise Stopped


def batches_of(work: Path) -> list[Path]:
    """The files of clean rows, in their order."""
    return sorted(work.glob("[0-9]*.parquet"))


def write(config: DataConfig, env: StageEnv, work: Path, keep: np.ndarray) -> dict[str, int]:
    """Write the rows of each part to files of so many rows. Returns how many each has."""
    split = config.split or ALL
    names = list(split.parts)
    waiting: dict[str, list[pl.DataFrame]] = {name: [] for name in names}
    count, files, at, schema = Counter[str](), Counter[str](), 0, _schema(work)

    def out(name: str, *, rest: bool = False) -> None:
        while (size := sum(map(len, waiting[name]))) >= config.rows_per_file or (rest and size):
            rows = pl.concat(waiting[name])
            waiting[name] = [rows[config.rows_per_file :]]
            path = env.output / name / f"{files[name]:05}.parquet"
            if not path.exists():
                with whole(path) as scratch:
                    rows[: config.rows_per_file].rechunk().write_parquet(scratch)
            files[name] += 1

    for path in batches_of(work):
        rows = pl.read_parquet(path).cast(schema)
        rows, at = rows.filter(pl.Series(keep[at : at + len(rows)])), at + len(rows)
        heard(env)
        if not len(rows):
            continue
        part = np.zeros(len(rows), np.int8) if len(names) == 1 else parts_of(_groups(rows, config), split, config.seed)
        for number, name in enumerate(names):
            mine = rows.filter(pl.Series(part == number)).drop("_row", "_hash")
            count[name] += len(mine)
            waiting[name].append(mine)
            out(name)
        env.report(at, len(keep), written=count.total())
    for name in names:
        out(name, rest=True)
    return {name: count[name] for name in names}


def _schema(work: Path) -> pl.Schema:
    """The kind of each column of all batches. Raises NexaError where a column has kinds that have nothing in common."""
    kinds: dict[str, dict[Any, None]] = {}
    for path in batches_of(work):
        for name, kind in pl.read_parquet_schema(path).items():
            kinds.setdefault(name, {})[kind] = None
    made = pl.Schema()
    for name, found in kinds.items():
        known = [kind for kind in found if kind != pl.Null]
        try:
            if pl.String in known[1:] + known[:1] * (len(known) > 1):  # anything becomes a text, and would be one
                raise pl.exceptions.SchemaError
            made[name] = pl.concat(
                [pl.DataFrame(schema={name: kind}) for kind in found], how="vertical_relaxed"
            ).schema[name]
        except pl.exceptions.PolarsError:
            said = " here, there ".join(map(str, known))
            hint = f"columns: {{{name}: {{type: string}}}} puts apart what is none"
            raise NexaError(f"column {name} is {said}", hint=hint, code=EXIT_USAGE) from None
    return made


def _groups(rows: pl.DataFrame, config: DataConfig) -> pl.Series:
    """What keeps rows in one part: the group's column, or the text itself but for case and spaces."""
    if config.split and config.split.by:
        return rows[config.split.by].cast(pl.String).fill_null("")
    return rows[config.text].str.to_lowercase().str.replace_all(r"\s+", "")


def pack(config: DataConfig, env: StageEnv) -> dict[str, int]:
    """Windows of tokens of each part, in packed/<part>/."""
    assert config.pack is not None
    tokens, length, counts = tokenizer(env.inputs[config.pack.tokenizer]), config.pack.length, dict[str, int]()
    for folder in (env.output / name for name in (config.split or ALL).parts):
        for file in sorted(folder.glob("*.parquet")):
            texts = pl.read_parquet(file, columns=[config.text])[config.text].to_list()
            made = list(windows((one.ids for one in tokens.encode_batch(texts)), length))
            counts[folder.name] = counts.get(folder.name, 0) + len(made)
            with whole(env.output / "packed" / folder.name / file.name) as path:
                names = ("input_ids", "document", "position")
                pl.DataFrame({name: [one[at] for one in made] for at, name in enumerate(names)},
                             schema=dict.fromkeys(names, pl.List(pl.Int32))).write_parquet(path)  # fmt: skip
            heard(env)
    return counts
