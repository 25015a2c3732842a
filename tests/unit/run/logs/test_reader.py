"""Reading logs of any size: against plain Python on small files, and under a memory limit on a large one."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_dist.run.logs import mirror
from nexa_dist.run.logs import reader as module
from nexa_dist.run.logs.reader import Chunk, Reader, Times, offset_at, tail_offset

ROOT = Path(__file__).parents[4]
LONGEST = 40


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so low that ordinary lines are long ones."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    for where in (module, mirror):
        monkeypatch.setattr(where, "MAX_LINE_BYTES", LONGEST)


def lines_of(chunks: list[Chunk]) -> list[bytes]:
    return [line for chunk in chunks for line in chunk.lines]


def in_pieces(data: bytes) -> list[bytes]:
    """Its lines as a reader has them."""
    return [line[at : at + LONGEST] for line in plain_lines(data) for at in range(0, len(line) or 1, LONGEST)]


def random_log(chance: random.Random) -> bytes:
    sizes = [chance.choice((0, 1, 10, 39, 40, 41, 63, 64, 65, 200, 1000)) for _ in range(chance.randrange(40))]
    data = b"\n".join(bytes(chance.choices(b"abX\xff\r", k=size)) for size in sizes)
    return data + chance.choice((b"", b"\n"))


def plain_lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


@pytest.mark.parametrize("seed", range(40))
def test_it_reads_what_is_there_whatever_the_sizes(tmp_path: Path, small: None, seed: int) -> None:
    chance = random.Random(seed)
    data, path = random_log(chance), tmp_path / "a.log"
    path.write_bytes(data)
    assert lines_of(list(Reader(path).read(final=True))) == in_pieces(data)
    pattern = re.compile(chance.choice((rb"XX", rb"^a", rb"b$", rb"^$", rb"aXb", rb"\xff\xff")))
    for timed in (False, True):
        found = lines_of(list(Reader(path, pattern=pattern, timed=timed).read(final=True)))
        assert found == [piece for piece in in_pieces(data) if pattern.search(piece)]


@pytest.mark.parametrize("seed", range(40))
def test_the_last_lines_are_found_from_the_end(tmp_path: Path, small: None, seed: int) -> None:
    chance = random.Random(seed)
    data, path, count = random_log(chance), tmp_path / "a.log", chance.randrange(1, 6)
    path.write_bytes(data)
    lines = plain_lines(data)
    assert plain_lines(data[tail_offset(path, count, None, 0) :]) == lines[-count:]
    pattern = re.compile(rb"X\xff")
    matching = [line for line in lines if any(map(pattern.search, in_pieces(line)))]
    shown = plain_lines(data[tail_offset(path, count, pattern, 0) :])
    assert [line for line in shown if any(map(pattern.search, in_pieces(line)))] == matching[-count:]
    assert tail_offset(path, 0, None, 0) == (len(data) if data[-1:] in (b"", b"\n") else data.rfind(b"\n") + 1)
    floor = data.find(b"\n") + 1
    assert tail_offset(path, 1000, None, floor) == floor


@pytest.mark.parametrize("seed", range(20))
def test_it_goes_on_where_it_was_while_the_file_grows(tmp_path: Path, small: None, seed: int) -> None:
    chance = random.Random(seed)
    data, path, chunks = random_log(chance), tmp_path / "a.log", list[Chunk]()
    pattern = chance.choice((None, re.compile(rb"X")))
    reader = Reader(path, pattern=pattern)
    chunks += reader.read(final=False)  # not there yet
    at = 0
    while at < len(data):
        size = chance.randrange(1, 150)
        with path.open("ab") as file:
            file.write(data[at : at + size])
        at += size
        chunks += reader.read(final=False, at_most_bytes=chance.choice((None, 10)))
    chunks += reader.read(final=True)
    assert lines_of(chunks) == [piece for piece in in_pieces(data) if pattern is None or pattern.search(piece)]


def test_a_time_is_where_the_line_begins_that_was_not_whole_by_then(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    (tmp_path / "a.log.times").write_bytes(b"100.000 4\n101.5 6\n103.0 14\n104.0")
    assert [offset_at(path, at) for at in (99.0, 100.0, 101.4, 101.5, 103.0, 200.0)] == [0, 4, 4, 4, 14, 14]
    with path.open("ab") as file:  # the agent was gone before it wrote the row of this
        file.write(b"four\n")
    os.utime(path, (105.0, 105.0))
    assert [offset_at(path, at) for at in (104.0, 105.0)] == [14, 19]
    (chunk,) = Reader(path, timed=True).read(final=True)
    assert chunk.times == [100.0, 103.0, 103.0, None]
    (chunk,) = Reader(path, pattern=re.compile(b"three"), timed=True).read(final=True)
    assert (chunk.lines, chunk.times) == ([b"three"], [103.0])


def test_the_time_of_what_no_row_covers_is_not_known_until_one_does(tmp_path: Path) -> None:
    index = tmp_path / "a.log.times"
    times = Times(tmp_path / "a.log")
    assert times.by(3) is None
    index.write_bytes(b"100.0 4\nrubbish\n101.0 1")
    assert (times.by(3), times.by(8)) == (100.0, None)
    with index.open("ab") as file:
        file.write(b"0\n")
    assert times.by(8) == 101.0


def test_a_log_without_an_index_is_all_of_a_time_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "agent.err"
    path.write_bytes(b"words\n")
    os.utime(path, (1000.0, 1000.0))
    assert (offset_at(path, 999.0), offset_at(path, 1001.0)) == (0, 6)


LIMITED = """
import re, resource, sys
from pathlib import Path
from nexa_dist.run.logs.reader import Reader, tail_offset
path, limit = Path(sys.argv[1]), int(sys.argv[2])
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + limit, now + limit))
total = sum(len(line) for chunk in Reader(path).read(final=True) for line in chunk.lines)
found = sum(len(line) for chunk in Reader(path, pattern=re.compile(b"needle")).read(final=True) for line in chunk.lines)
last = tail_offset(path, 1, re.compile(b"needle"), 0)
print(total, found, last)
whole = path.read_bytes()
"""


def test_forty_megabytes_in_one_line_and_in_many_are_read_in_little_memory(tmp_path: Path) -> None:
    """The child may take 16 MiB more than it has; that it cannot hold the file is its own proof of the limit."""
    path, rows, length = tmp_path / "a.log", 200_000, 20_000_000
    with path.open("wb") as file:
        for i in range(0, rows, 1000):
            file.write(b"".join(b"%099d\n" % (i + j) for j in range(1000)))
        file.write(b"x" * (length - 6) + b"needle\n" + b"y" * length)
    argv = [sys.executable, "-c", LIMITED, str(path), str(16 << 20)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == [str(rows * 99 + 2 * length), str(length % 65536), str(rows * 100)], done.stderr
    assert "MemoryError" in done.stderr and done.returncode == 1
