"""The CSV that goes out to people and comes back from a spreadsheet.

Spreadsheets add a byte order mark or write UTF-16, take ; or tabs for commas, sort, and round long numbers: so a row is
known by `key`, a text that none of them takes for a number, and only `key`, `review` and `note` are read again.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.errors import UsageError
from nexa_dist.stages.row_files import Id, Row
from nexa_dist.stages.whole import whole

NAME = "review.csv"
HEAD = ("key", "review", "note", "reasons", "id")
WORDS = ("pending", "accept", "reject")
_MOST_CELL = 32_000
"""Characters of a cell; Excel takes 32,767."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Decision:
    """What a person said of a row, and in which line."""

    review: str
    note: str = ""
    line: int = 0


def key_of(row_id: Id) -> str:
    """The name of a row in the CSV."""
    return "k" + hashlib.sha256(f"{type(row_id).__name__}:{row_id}".encode()).hexdigest()[:15]


def write(path: Path, rows: Iterable[tuple[Id, Sequence[str], Decision, Mapping[str, Any]]]) -> int:
    """Write (id, reasons, decision so far, columns to see) of each row: UTF-8 with the byte order mark of Excel."""
    count, writer = 0, None
    with whole(path) as scratch, scratch.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        for row_id, reasons, told, columns in rows:
            if writer is None:
                writer = csv.writer(file)
                writer.writerow([*HEAD, *columns])
            cells = [key_of(row_id), told.review, told.note, "; ".join(reasons), row_id, *columns.values()]
            writer.writerow([cell(value) for value in cells])
            count += 1
        if writer is None:
            csv.writer(file).writerow(HEAD)
    return count


def cell(value: Any) -> str:
    """A value to be seen. What a spreadsheet would take for a formula gets a ' before it."""
    text = "" if value is None else str(value)
    text = f"'{text}" if text.startswith(_FORMULA) else text
    return text if len(text) <= _MOST_CELL else f"{text[:_MOST_CELL]}…"


def read(path: Path, known: Mapping[str, Id]) -> dict[Id, Decision]:
    """Decisions by id, of the rows that are `known` by key. Raises UsageError, naming the line, for a word that is
    none, a key that no row has, and two decisions that contradict each other."""
    found: dict[Id, Decision] = {}
    for line, row in _lines(path):
        word = row["review"].strip().lower() or "pending"
        if word not in WORDS:
            raise UsageError(f"{path}:{line}: review is {row['review']!r:.60}", hint=f"one of {', '.join(WORDS)}")
        key = row["key"].strip()
        if key not in known:
            raise UsageError(
                f"{path}:{line}: no row has the key {key!r:.60}", hint="it is of other rows, or the key was edited"
            )
        decision, before = Decision(word, row.get("note", "").strip(), line), found.get(known[key])
        if before and "pending" not in (before.review, word) and before.review != word:
            raise UsageError(f"{path}:{line}: {key} is {word} here and {before.review} in line {before.line}")
        if before is None or before.review == "pending":
            found[known[key]] = decision
    return found


def _lines(path: Path) -> list[tuple[int, Row]]:
    text = _decoded(path)
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    names = {name: name.strip().lower() for name in reader.fieldnames or () if name}
    if missing := [name for name in ("key", "review") if name not in names.values()]:
        raise UsageError(f"{path}: no column {', '.join(missing)}", hint=f"its columns: {', '.join(names) or 'none'}")
    rows = []
    try:
        for row in reader:
            cells = {names[name]: value or "" for name, value in row.items() if name in names}
            if any(cells.values()):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: no CSV: {error}") from None
    return rows


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: neither UTF-8 nor UTF-16 (byte {error.start})", hint="save it as CSV UTF-8"
        ) from None
