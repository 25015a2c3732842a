"""Rows of the files of an input, each with its id; and the sorted Parquet that a stage leaves."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_dist.errors import UsageError
from nexa_dist.stages.whole import MANIFEST, whole
from nexa_dist.train.text import examples

ROWS = "rows.parquet"
Row = dict[str, Any]
Id = int | str
TURNS = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
"""The turns of a chat."""
_GROUP = 1024
"""Rows of a row group: all that is in memory at a time."""


def files_of(place: Path) -> list[Path]:
    """The files of rows of an input: itself, or the .parquet and .jsonl right in the folder. Raises UsageError."""
    if place.is_file():
        return [place]
    found = sorted(
        path for path in place.iterdir() if path.suffix in (".parquet", ".jsonl") and not path.name.startswith(".")
    )
    if not found:
        raise UsageError(f"{place}: no .parquet or .jsonl file is in it", hint=f"{MANIFEST} beside them is fine")
    return found


def rows_of(place: Path, id_column: str | None) -> Iterator[tuple[Id, Row]]:
    """(id, row) of all rows of an input, in the order of its files. The id is the row's column; without one SHA-256 of
    the row. Raises UsageError, naming the row, for a row that is no object, has no id, or the id of an earlier row."""
    seen: set[Id] = set()
    for where, row in examples.rows(files_of(place)):
        if not isinstance(row, dict):
            raise UsageError(f"{where}: {type(row).__name__}, expected an object")
        if id_column is None:
            found: Any = hashlib.sha256(plain(row).encode()).hexdigest()[:32]
        else:
            found = row.get(id_column)
        if not isinstance(found, int | str) or isinstance(found, bool):
            raise UsageError(f"{where}: column {id_column} holds {found!r:.80}, and an id is a text or a whole number")
        if found in seen:
            if id_column is None:
                continue  # the same row twice has the same answer
            raise UsageError(
                f"{where}: the id {found!r:.80} is there twice", hint="id: names a column of unique values"
            )
        seen.add(found)
        yield found, row


def first_of(inputs: Mapping[str, Path], name: str, id_column: str | None, example: str) -> Row:
    """The first row of the input `name`. Raises UsageError where there is no such input (`example` is one), or no row
    in it."""
    if name not in inputs:
        raise UsageError(f"inputs: {name} is missing", hint=f"inputs: {{{name}: {example}}}")
    for _, row in rows_of(inputs[name], id_column):
        return row
    raise UsageError(f"inputs.{name}: {inputs[name]} has no rows")


def refuse_lacking(key: str, names: Iterable[str], row: Row) -> None:
    """Raises UsageError, naming the config's key, for columns that the row has not."""
    if missing := [name for name in names if name not in row]:
        raise UsageError(f"{key}: {', '.join(missing)} is no column", hint=f"the columns: {', '.join(row)}")


def plain(value: Any) -> str:
    """JSON of a row, the same for equal rows."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def in_order(ids: Iterable[Id]) -> list[Id]:
    """Numbers by value, then texts."""
    return sorted(ids, key=lambda one: (isinstance(one, str), one))


def rounded(exact: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total` as the exact ones do, by the largest remainder (Hamilton's method)."""
    made = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: (made[name] - exact[name], name))[: total - sum(made.values())]:
        made[name] += 1
    return made


def kind_of_values(kinds: set[type]) -> pa.DataType:
    """The type of a column whose values are of these kinds (null aside): what they share, else text (`as_column`)."""
    kinds = kinds - {type(None)}
    plain_kinds = (({bool}, pa.bool_()), ({int}, pa.int64()))
    found = next((kind for only, kind in plain_kinds if kinds == only), None)
    return found or (pa.float64() if kinds and kinds <= {int, float} else pa.string())


def as_column(value: Any, kind: pa.DataType) -> Any:
    """A value for a column of this type; in one of texts, what is none becomes JSON."""
    return plain(value) if pa.types.is_string(kind) and not isinstance(value, str | None) else value


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a Parquet file whole, a row group at a time."""
    left = iter(rows)
    with whole(path) as scratch, pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
        while group := list(itertools.islice(left, _GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            del group  # before the next is read


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file whole; none where there are no rows."""
    left = iter(rows)
    if (first := next(left, None)) is None:
        return
    with whole(path) as scratch, scratch.open("w", encoding="utf-8", errors="replace") as file:
        for row in itertools.chain((first,), left):
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
