"""Rows of Parquet, JSONL and CSV files, compressed or not, in batches of a fixed size."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pyarrow.parquet

from nexa_dist.errors import NexaError
from nexa_dist.stages.data.config import ColumnConfig
from nexa_dist.stages.data.values import is_text, typed

ROWS = 50_000
"""Rows of a batch, at most: a bound on memory…"""
BYTES = 64 << 20
"""…and bytes of their texts, beside one row more; a line that is longer is no row."""
FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
FIRST = 1000
"""Rows that tell the columns of a file of JSON."""
RESERVED = {"_row", "_hash", "_why"}
"""Columns of this stage's own."""
SHOWN = 80
"""Characters of a bad value that are kept."""
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
    others: dict[str, int] = field(default_factory=dict)
    """Rows of JSON with a value in a column that was not asked for, by column."""


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
            return _free(pyarrow.parquet.read_schema(path).names, path.name)
        except (pyarrow.ArrowException, OSError) as error:
            raise NexaError(f"{path} cannot be read: {_said(error)}") from None
    first = next(batches(path, path.name, {}, FIRST), None)
    if first and first.bad and not len(first.rows):
        one = first.bad[0]
        raise NexaError(f"{path}: none of its first {first.read} rows is one; row {one.row}: {one.why}, {one.value}")
    return [name for name in first.rows.columns if name != "_row"] if first else []


def _free(names: Iterable[str], file: str) -> list[str]:
    if taken := sorted(RESERVED.intersection(names)):
        raise NexaError(f"{file} has the column {', '.join(taken)}, and so has this stage", hint="rename it")
    return list(names)


def batches(path: Path, name: str, columns: Mapping[str, ColumnConfig], size: int = ROWS) -> Iterator[Batch]:
    """All rows of a file; without `columns` every one of its columns. Raises NexaError for what ends the reading."""
    form, packed = format_of(path)
    try:
        if form == "parquet":
            yield from _parquet(path, name, columns, size)
            return
        with pyarrow.input_stream(str(path), compression=packed) as raw:
            stream = io.BufferedReader(raw, 1 << 20)
            if stream.peek(4)[:2] in (b"\xff\xfe", b"\xfe\xff") or stream.peek(4)[:4] == b"\0\0\xfe\xff":
                raise NexaError(f"{path} is no UTF-8 but UTF-16 or UTF-32", hint="iconv -f UTF-16 -t UTF-8 makes it so")
            read = _jsonl(stream, name) if form == "jsonl" else _csv(stream, name, "\t" if form == "tsv" else ",")
            yield from _batched(read, name, columns, size)
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise NexaError(f"{path} cannot be read: {_said(error)}", hint="is it whole, and what its name says?") from None


def _said(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _parquet(path: Path, name: str, columns: Mapping[str, ColumnConfig], size: int) -> Iterator[Batch]:
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
        wanted = [one for one in columns if one in file.schema_arrow.names] if columns else None
        about = sum(file.metadata.row_group(at).total_byte_size for at in range(file.num_row_groups))
        size, at = min(size, max(1, BYTES * file.metadata.num_rows // max(about, 1))), 0
        for part in file.iter_batches(size, columns=wanted):
            frame = pl.DataFrame(pyarrow.Table.from_batches([part]))
            yield Batch(name, frame.with_row_index("_row", at + 1).cast({"_row": pl.Int64}), len(frame))
            at += len(frame)


Read = tuple[int, "dict[str, Any] | Bad", int]
"""Number of a row in its file, the row, and the bytes that it takes."""


def _jsonl(stream: io.BufferedReader, name: str) -> Iterator[Read]:
    """Each line that is not empty."""
    for number in itertools.count(1):
        if not (line := stream.readline(BYTES)):
            return
        if len(line) == BYTES and line[-1:] != b"\n":
            while (rest := stream.readline(BYTES)) and rest[-1:] != b"\n":
                pass
            yield number, Bad(name, number, "", f"a line of more than {BYTES >> 20} MB", _start(line)), SHOWN
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = Bad(name, number, "", f"no JSON: {_said(error)}", _start(line))
        if not isinstance(row, dict | Bad):
            row = Bad(name, number, "", "no JSON object", _start(line))
        yield number, row, len(line)


def _start(line: bytes) -> str:
    return line[:SHOWN].decode(errors="replace")


def _csv(stream: io.BufferedReader, name: str, delimiter: str) -> Iterator[Read]:
    csv.field_size_limit(BYTES)
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    for number in itertools.count():
        line, row, bad = reader.line_num + 1, list[str](), None
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                lines = f"all {reader.line_num - line + 1} lines from there to the end"
                raise NexaError(f"{name} line {line}: a quotation mark stays open over {lines}") from None
            bad = Bad(name, number, "", f"line {line}: {_said(error)}", "")
        if header is None:
            header = _header(row, bad, name)
        elif row and len(row) != len(header):
            shown = repr(delimiter.join(row))[:SHOWN]
            bad = Bad(name, number, "", f"{len(row)} fields, and the header has {len(header)}", shown)
        elif row and (at := next((at for at, value in enumerate(row) if not is_text(value)), None)) is not None:
            bad = Bad(name, number, header[at], "no UTF-8", repr(row[at])[:SHOWN])
        if number and (bad or row):
            made = {key: value if value != "" else None for key, value in zip(header, row, strict=not bad)}
            yield number, bad or made, sum(map(len, row))


def _header(row: list[str], bad: Bad | None, name: str) -> list[str]:
    """The header. Raises NexaError for one that does not tell the columns apart."""
    if bad or not all(map(is_text, row)):
        raise NexaError(f"{name}: its header is {bad.why if bad else 'no UTF-8'}")
    if twice := sorted({one for one in row if row.count(one) > 1}):
        raise NexaError(f"{name}: its header has the column {', '.join(map(repr, twice))} twice")
    return row


def _batched(read: Iterator[Read], name: str, columns: Mapping[str, ColumnConfig], size: int) -> Iterator[Batch]:
    rows: list[tuple[int, dict[str, Any]]] = []
    bad: list[Bad] = []
    held = 0
    for number, row, count in read:
        held += count
        if isinstance(row, Bad):
            bad.append(row)
        else:
            rows.append((number, row))
        if len(rows) + len(bad) == size or held >= BYTES:
            yield _framed(rows, bad, name, columns)
            rows, bad, held = [], [], 0
    if rows or bad:
        yield _framed(rows, bad, name, columns)


def _framed(
    rows: list[tuple[int, dict[str, Any]]], bad: list[Bad], name: str, columns: Mapping[str, ColumnConfig]
) -> Batch:
    count, series = len(rows) + len(bad), dict[str, Any]()
    wrong: set[int] = set()
    known = Counter(key for _, row in rows for key in row)
    for column in columns or _free(known, name):
        values = [row.get(column) for _, row in rows]
        try:
            faults = typed(values, columns[column].type if columns else "any")
        except ValueError as error:
            hint = f"columns: {{{column}: {{type: string}}}} puts what is no text apart"
            raise NexaError(f"{name} row {rows[0][0]} and on, column {column}: {error}", hint=hint) from None
        for at, why in faults.items():
            bad.append(Bad(name, rows[at][0], column, why, repr(values[at])[:SHOWN]))
            values[at] = None
        wrong.update(faults)
        kind = DTYPES.get(columns[column].type) if columns else None
        series[column] = pl.Series(column, pyarrow.array(values) if kind is None else values, kind)
    frame = pl.DataFrame({"_row": pl.Series([number for number, _ in rows], dtype=pl.Int64), **series})
    if wrong:
        frame = frame.filter(pl.Series([at not in wrong for at in range(len(rows))]))
    first = {one.row: one for one in reversed(bad)}  # a row is bad once
    others = {key: many for key, many in known.items() if columns and key not in columns}
    return Batch(name, frame, count, [first[row] for row in sorted(first)], others)
