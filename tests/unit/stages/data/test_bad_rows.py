"""What is no row, no file or no value is named with its place, whatever the format: no traceback, and nothing lost."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")

from nexa_dist.errors import NexaError  # noqa: E402
from nexa_dist.stages.contract import StageEnv  # noqa: E402
from nexa_dist.stages.data import read  # noqa: E402
from nexa_dist.stages.data.config import DataConfig as Config  # noqa: E402
from nexa_dist.stages.data.steps import prepare, run  # noqa: E402

LINES = b"".join(b'{"text": "row %d"}\n' % number for number in range(2000))


def made(folder: Path, path: Path, **keys: Any) -> int:
    folder.mkdir(exist_ok=True)
    config = Config.model_validate({"stage": "data", "name": "toy", **keys})
    env = StageEnv({"rows": path}, folder, 0, 1, lambda: False, lambda *_, **__: None, lambda **_: None)
    prepare(config, env)
    return run(config, env)


def of(tmp_path: Path, name: str, data: bytes, **keys: Any) -> tuple[list[dict[str, Any]], list[tuple[int, str, str]]]:
    """The rows that are kept of a file, and row, column and reason of the bad ones."""
    (tmp_path / name).write_bytes(data)
    out = tmp_path / f"out-{name}"
    assert made(out, tmp_path / name, duplicates={"exact": False}, **keys) == 0
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    rows: list[dict[str, Any]] = pl.read_parquet(out / "train/*.parquet").to_dicts()
    assert len(rows) + len(bad) == json.loads((out / "report.json").read_text())["read"]
    return rows, [(one["row"], one["column"], one["why"]) for one in bad]


def packed(kind: str) -> bytes:
    if kind == "gz":
        return gzip.compress(LINES)
    if kind == "bz2":
        return bz2.compress(LINES)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, {"zst": "zstd", "lz4": "lz4"}[kind]) as stream:
        stream.write(LINES)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "lz4"])
def test_a_compressed_file_is_read_whole_or_refused(tmp_path: Path, kind: str) -> None:
    data = packed(kind)
    rows, bad = of(tmp_path, f"two.jsonl.{kind}", data + data)
    assert (len(rows), bad) == (4000, []), "one compressed file behind another, as cat makes"
    for name, torn in (
        ("cut", data[: len(data) * 2 // 3]),
        ("byte", data[:-1]),
        ("plain", LINES),
        ("more", data + b"??"),
    ):
        with pytest.raises(NexaError, match=rf"{name}\.jsonl\.{kind} cannot be read: "):
            of(tmp_path, f"{name}.jsonl.{kind}", torn)


def test_csv_says_row_and_column_of_the_first_column_too(tmp_path: Path) -> None:
    data = 'text,n\nfine,1\ncafé,2\n"a"b,3\nfine too,4\n'.encode("latin-1")
    rows, bad = of(tmp_path, "latin.csv", data)
    assert [row["text"] for row in rows] == ["fine", "fine too"]
    assert bad == [(2, "text", "no UTF-8"), (3, "", "line 4: ',' expected after '\"'")]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("open.csv", b'text,n\na,1\n"b,2\nc,3\nd,4\n', "open.csv line 3: a quotation mark stays open over all 3 lines"),
        ("twice.csv", b"text,n,n\na,1,2\n", "its header has the column 'n' twice"),
        ("head.csv", b"text,\xff\na,1\n", "its header is no UTF-8"),
        ("wide.csv", "text\nå\n".encode("utf-16"), r"wide\.csv is no UTF-8 but UTF-16"),
        ("wide.jsonl", '{"text": "å"}\n'.encode("utf-16"), r"wide\.jsonl is no UTF-8 but UTF-16"),
        ("none.jsonl", b"a\nb\n", "none of its first 2 rows is one; row 1: no JSON: .*, a"),
        ("empty.jsonl", b"", r"no row is in empty\.jsonl"),
        ("empty.csv", b"text\n", r"no row is in empty\.csv"),
        ("mine.jsonl", b'{"text": "a", "_row": 1}\n', "mine.jsonl has the column _row"),
        ("kinds.jsonl", b'{"text": "a", "x": 1}\n' * 3 + b'{"text": "a", "x": "one"}\n' * 3,
         "column x is Int64 here, there String"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, words: str
) -> None:
    monkeypatch.setattr(read.batches, "__defaults__", (3,))
    with pytest.raises(NexaError, match=words):
        of(tmp_path, name, data)


def test_values_that_no_column_holds_are_named_and_none_is_lost(tmp_path: Path) -> None:
    lines = [
        {"text": "a", "x": 1, "y": {"k": 1}}, {"text": "b", "x": 2.5, "y": {"k": 2, "l": "new"}},
        {"text": "c", "x": "two"}, {"text": "d", "y": {"k": {}}}, {"text": "e", "x": 10**30}, {"text": 5},
        {"text": "\ud800"}, {"text": "g", "x": True}, {"text": "h", "y": {"\ud800": 1}}, {"text": "i", "x": None},
    ]  # fmt: skip
    rows, bad = of(
        tmp_path, "odd.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode() + b'{"text": "cut'
    )
    assert [row["text"] for row in rows] == ["a", "b", "i"]
    assert [(row["x"], row["y"]) for row in rows] == [
        (1, {"k": 1, "l": None}),
        (2.5, {"k": 2, "l": "new"}),
        (None, None),
    ]
    assert [(row, column) for row, column, _ in bad] == [
        (3, "x"), (4, "y"), (5, "x"), (6, "text"), (7, "text"), (8, "x"), (9, "y"), (11, ""),
    ]  # fmt: skip
    assert {why for row, _, why in bad if row in (3, 8)} == {"expected number, as most rows around have"}
    large = [
        {"text": "a", "n": 2**63},
        {"text": "b", "n": 2**63 - 1},
        {"text": "c", "n": "12"},
        {"text": "d", "n": 1.5},
    ]
    columns = {"text": {}, "n": {"type": "integer"}}
    rows, bad = of(tmp_path, "n.jsonl", "".join(json.dumps(line) + "\n" for line in large).encode(), columns=columns)
    assert [row["n"] for row in rows] == [2**63 - 1, 12]
    assert bad == [(1, "n", "expected integer of 64 bits"), (4, "n", "expected integer")]


def test_a_line_of_10_mb_is_a_row_and_one_without_an_end_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = json.dumps({"text": ("w" * 99 + " ") * 100_000}).encode() + b"\n"
    rows, bad = of(tmp_path, "long.jsonl", long + LINES[:18], length={"max_characters": 20_000_000})
    assert ([len(row["text"]) for row in rows], bad) == ([9_999_999, 5], [])
    monkeypatch.setattr(read, "BYTES", 4 << 20)
    rows, bad = of(tmp_path, "longer.jsonl", long + LINES[:18] + long[:-1])
    assert (rows, bad) == (
        [{"text": "row 0"}],
        [(1, "", "a line of more than 4 MB"), (3, "", "a line of more than 4 MB")],
    )
    monkeypatch.setattr(read, "BYTES", 50)
    found = list(read.batches(tmp_path / "long.jsonl", "x", {}))
    assert [batch.read for batch in found] == [1, 1], "a batch ends at so many bytes"


def test_a_column_that_begins_late_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = b'{"text": "a", "source": "b"}\n'
    rows, _ = of(tmp_path, "late.jsonl", LINES + late)
    assert len(rows) == 2001
    assert json.loads((tmp_path / "out-late.jsonl/report.json").read_text())["left_out"] == {"source": 1}
    assert "column source is left out, 1 rows have it" in capsys.readouterr().out


def test_a_damaged_page_of_parquet_is_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": [f"row {number}" for number in range(3000)]})
    frame.write_parquet(tmp_path / "rows.parquet", compression="zstd", row_group_size=1000)
    data = bytearray((tmp_path / "rows.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    for name, torn in (("page", bytes(data)), ("cut", bytes(data[:-100]))):
        with pytest.raises(NexaError, match=rf"{name}\.parquet cannot be read"):
            of(tmp_path, f"{name}.parquet", torn)


def test_files_of_a_version_have_one_schema_whenever_a_value_first_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read.batches, "__defaults__", (2,))
    values: list[Any] = [None, None, 1, 2, 2.5, 3]
    nested: list[Any] = [None, None, {"a": 1}, {"a": 2}, {"a": None, "b": [0.5]}, {}]
    lines = [{"text": "t", "x": x, "y": y} for x, y in zip(values, nested, strict=True)]
    rows, bad = of(
        tmp_path, "kinds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode(), rows_per_file=2
    )
    assert [row["x"] for row in rows] == values and bad == []
    assert [row["y"] for row in rows][2:5] == [{"a": 1, "b": None}, {"a": 2, "b": None}, {"a": None, "b": [0.5]}]
    schemas = [pl.read_parquet_schema(path) for path in (tmp_path / "out-kinds.jsonl/train").iterdir()]
    assert len(schemas) == 3 and schemas[0] == schemas[1] == schemas[2]


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([["a"], ["b"]], "string", []),
        ([{"a": 1}, {"a": 2}], "integer", []),
        ([b"a\xff", b"b"], "string", []),
        ([datetime.date(2020, 1, 1), None], "boolean", []),
        ([1.0, 1.5], "integer", [1]),
        ([0, 2], "boolean", [False]),
        ([1, 2**60], "number", [1.0, 2.0**60]),
        (["12", "x"], "integer", [12]),
        ([True, False], "string", ["true", "false"]),
    ],
)
def test_a_value_of_parquet_is_what_was_asked_or_bad_and_never_another(
    tmp_path: Path, values: list[Any], kind: str, kept: list[Any]
) -> None:
    pl.DataFrame({"text": ["some", "other"], "x": values}).write_parquet(tmp_path / "rows.parquet")
    columns = {"text": {}, "x": {"type": kind}}
    if not kept:
        with pytest.raises(NexaError, match="of 2 rows none is left: bad 2"):
            made(tmp_path / "out", tmp_path / "rows.parquet", columns=columns)
    else:
        assert made(tmp_path / "out", tmp_path / "rows.parquet", columns=columns) == 0
        assert pl.read_parquet(tmp_path / "out/train/*.parquet")["x"].to_list() == kept
    assert len((tmp_path / "out/bad.jsonl").read_text().splitlines()) == 2 - len(kept)


def test_what_parquet_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(NexaError, match=r"polars cannot do this with these rows: .*struct"):
        of(tmp_path, "hollow.jsonl", b'{"text": "a", "x": {}}\n')
