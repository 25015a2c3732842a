"""Rows of Parquet, JSONL and CSV files, compressed or not, in batches of a fixed size."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pyarrow.parquet

from nexa_dist.errors import NexaError
from nexa_dist.stages.data.config import ColumnConfig

ROWS = 50_000
"""Rows of a batch: a bound on memory."""
FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
SHOWN = 80
"""Characters of a bad value that are kept."""
KINDS: Mapping[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float),
                                         "boolean": (bool,)}  # fmt: skip
DTYPES = {"string": pl.String, "integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean}


@dataclass(frozen=True)
class Bad:
    """A row that is not taken, counted from 1 in its file; `column` is empty where the whole row is no row."""

    file: str
    row: int
    column: str
    why: str
    value: str


@dataclass
class Batch:
    """Rows of one file as they are there: `rows` has the number of each in `_row`; `bad` are those that are none."""

    file: str
    rows: pl.DataFrame
    read: int
    bad: list[Bad] = field(default_factory=list)


def files_of(root: Path) -> list[Path]:
    """Files of rows below a folder, or the file itself; of a version its part `train`. Raises NexaError."""
    if root.is_file():
        format_of(root)
        return [root]
    top = root / "train" if (root / "manifest.json").exists() and (root / "train").is_dir() else root
    found = [path for path in sorted(top.rglob("*")) if path.is_file() and _known(path) and path.name[0] != "."]
    if not found:
        raise NexaError(f"{root} has no file of rows", hint=f"known are {', '.join(FORMATS)}, also {', '.join(PACKED)}")
    return found


def format_of(path: Path) -> tuple[str, str | None]:
    """Format and compression of a file, by its name. Raises NexaError."""
    if (known := _known(path)) is None:
        raise NexaError(
            f"{path}: no format has this name", hint=f"known are {', '.join(FORMATS)}, and .gz and the like"
        )
    return known


def _known(path: Path) -> tuple[str, str | None] | None:
    packed = PACKED.get(path.suffix.lower())
    form = FORMATS.get(Path(path.stem if packed else path.name).suffix.lower())
    return (form, packed) if form and not (packed and form == "parquet") else None


def names_of(path: Path) -> list[str]:
    """Columns of a file: of its schema, its header, or its first rows."""
    if format_of(path)[0] == "parquet":
        try:
            return list(pyarrow.parquet.read_schema(path).names)
        except (pyarrow.ArrowException, OSError) as error:
            raise NexaError(f"{path} cannot be read: {_said(error)}") from None
    first = next(batches(path, path.name, {}, 1000), None)
    return [name for name in first.rows.columns if name != "_row"] if first else []


def batches(path: Path, name: str, columns: Mapping[str, ColumnConfig], size: int = ROWS) -> Iterator[Batch]:
    """All rows of a file; without `columns` every one of its columns. Raises NexaError for what ends the reading."""
    form, packed = format_of(path)
    try:
        if form == "parquet":
            yield from _parquet(path, name, columns, size)
            return
        with pyarrow.input_stream(str(path), compression=packed) as stream:
            read = (
                _jsonl(io.BufferedReader(stream), name)
                if form == "jsonl"
                else _csv(stream, name, "\t" if form == "tsv" else ",")
            )
            yield from _batched(read, name, columns, size)
    except (pyarrow.ArrowException, OSError, EOFError, csv.Error) as error:
        raise NexaError(f"{path} cannot be read: {_said(error)}", hint="is it whole, and what its name says?") from None


def _said(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _parquet(path: Path, name: str, columns: Mapping[str, ColumnConfig], size: int) -> Iterator[Batch]:
    with pyarrow.parquet.ParquetFile(path) as file:
        wanted = [one for one in columns if one in file.schema_arrow.names] if columns else None
        at = 0
        for part in file.iter_batches(size, columns=wanted):
            frame = pl.DataFrame(pyarrow.Table.from_batches([part]))
            yield Batch(name, frame.with_row_index("_row", at + 1).cast({"_row": pl.Int64}), len(frame))
            at += len(frame)


def _jsonl(stream: Any, name: str) -> Iterator[tuple[int, Any]]:
    """Number and row, or Bad, of each line that is not empty."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = Bad(name, number, "", f"no JSON: {_said(error)}", line[:SHOWN].decode(errors="replace"))
        if not isinstance(row, dict | Bad):
            row = Bad(name, number, "", "no JSON object", line[:SHOWN].decode(errors="replace"))
        yield number, row


def _csv(stream: Any, name: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter)
    header = next(reader, [])
    for number, row in enumerate(reader, 1):
        if not row:
            continue
        if len(row) != len(header):
            yield number, Bad(name, number, "", f"{len(row)} fields, and the header has {len(header)}",
                              repr(delimiter.join(row))[:SHOWN])  # fmt: skip
        elif bad := next((at for at, value in enumerate(row) if not _is_text(value)), None):
            yield number, Bad(name, number, header[bad], "no UTF-8", repr(row[bad])[:SHOWN])
        else:
            yield number, {key: value if value != "" else None for key, value in zip(header, row, strict=True)}


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _batched(
    read: Iterator[tuple[int, Any]], name: str, columns: Mapping[str, ColumnConfig], size: int
) -> Iterator[Batch]:
    rows: list[tuple[int, dict[str, Any]]] = []
    bad: list[Bad] = []
    for number, row in read:
        if isinstance(row, Bad):
            bad.append(row)
        else:
            rows.append((number, row))
        if len(rows) + len(bad) == size:
            yield _framed(rows, bad, name, columns)
            rows, bad = [], []
    if rows or bad:
        yield _framed(rows, bad, name, columns)


def _framed(
    rows: list[tuple[int, dict[str, Any]]], bad: list[Bad], name: str, columns: Mapping[str, ColumnConfig]
) -> Batch:
    count = len(rows) + len(bad)
    series: dict[str, Any] = {}
    wrong: set[int] = set()
    for column in columns or dict.fromkeys(key for _, row in rows for key in row):
        values = [row.get(column) for _, row in rows]
        kind = columns[column].type if columns else "any"
        if kinds := KINDS.get(kind):
            for at, value in enumerate(values):
                if value is None or (isinstance(value, kinds) and (kind == "boolean" or type(value) is not bool)):
                    continue
                if isinstance(value, str) and (made := _of_text(value, kind)) is not None:
                    values[at] = made
                    continue
                bad.append(Bad(name, rows[at][0], column, f"expected {kind}", repr(value)[:SHOWN]))
                wrong.add(at)
                values[at] = None
            series[column] = pl.Series(column, values, DTYPES[kind], strict=False)
        else:
            series[column] = pl.Series(column, values, strict=False)
    frame = pl.DataFrame({"_row": pl.Series([number for number, _ in rows], dtype=pl.Int64), **series})
    if wrong:
        frame = frame.filter(pl.Series([at not in wrong for at in range(len(rows))]))
    first = {one.row: one for one in reversed(bad)}  # a row is bad once
    return Batch(name, frame, count, [first[row] for row in sorted(first)])


def _of_text(value: str, kind: str) -> Any:
    """What a text of a CSV means as another kind; None where it is none."""
    try:
        if kind == "boolean":
            return {"true": True, "false": False, "1": True, "0": False}[value.strip().lower()]
        return int(value) if kind == "integer" else float(value)
    except (KeyError, ValueError):
        return None
