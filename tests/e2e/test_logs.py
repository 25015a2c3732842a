"""nexa logs after a run of two attempts whose four ranks print what terminals and parsers dislike."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pexpect
import pytest

from tests.e2e.conftest import NEXA, Lab, runs, until

pytestmark = pytest.mark.e2e

PRINT = r"""
import os, sys, time
rank, attempt, out = os.environ["RANK"], os.environ["NEXA_ATTEMPT"], sys.stdout.buffer
out.write(b"rank %s of attempt %s\n" % (rank.encode(), attempt.encode()))
out.write(b"\xff\x1b]0;owned\x07\x1b[31mred\n")
if rank == "1":
    out.write(b"x" * 300_000 + b"needle\n")
out.flush()
index = os.path.join(os.environ["NEXA_RANK_DIR"], "attempt_%s.log.times" % attempt)
while not (os.path.exists(index) and os.path.getsize(index)):  # the node's agent has noted when these were written
    time.sleep(0.05)
time.sleep(1.5)
out.write(b"no newline")
out.flush()
if attempt == "1":
    open(os.path.join(os.environ["SPOKEN"], rank), "w").close()
    while rank != "3" or len(os.listdir(os.environ["SPOKEN"])) < 4:
        time.sleep(0.1)
    time.sleep(1)
    raise SystemExit(1)
"""
HOSTILE = b"\xff\x1b]0;owned\x07\x1b[31mred"


def read(lab: Lab, *words: str) -> bytes:
    """The bytes that `nexa logs` writes into a pipe, with no ssh in reach: all is here, the nodes may be gone."""
    argv = [*lab.prefix, *NEXA, "logs", *words]
    done = subprocess.run(
        argv, cwd=lab.root, env=lab.environment(PATH="/nonexistent"), capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of(rank: int, attempt: int) -> list[bytes]:
    long = [b"x" * 65536] * 4 + [b"x" * (300_000 - 4 * 65536) + b"needle"] if rank == 1 else []
    lines = [b"rank %d of attempt %d" % (rank, attempt), HOSTILE, *long, b"no newline"]
    return [b"[n%d:%d] %s\n" % (rank // 2, rank, line) for line in lines]


def test_every_line_of_every_rank_and_attempt_by_any_filter(clean: Lab, tmp_path: Path) -> None:
    before = runs(clean)
    child = clean.begin("run", clean.script("printing", PRINT, restarts_per_hour=10, env={"SPOKEN": str(tmp_path)}))
    until(lambda: runs(clean) > before and (clean.newest() / "run.json").exists(), "the attempt is written down")
    run = clean.newest().name
    argv = [*clean.prefix, *NEXA, "logs", run, "--follow", "--rank", "0,2"]
    follower = subprocess.Popen(argv, cwd=clean.root, env=clean.environment(), stdout=subprocess.PIPE)
    _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said
    followed, _ = follower.communicate(timeout=600)
    attempts = [clean.record()["attempts"][i] for i in range(2)]

    every = read(clean, run, "--rank", "0,1,2,3")
    assert every == b"".join(b"".join(lines_of(rank, attempt)) for attempt in (1, 2) for rank in range(4))
    expected = b"".join(b"".join(lines_of(rank, attempt)) for attempt in (1, 2) for rank in (0, 2))
    assert sorted(followed.splitlines()) == sorted(expected.splitlines())
    assert read(clean, run, "--rank", "3", "--attempt", "2") == b"".join(lines_of(3, 2))
    assert {line.split(b"]")[0] for line in read(clean, run, "--node", "n1").splitlines()} >= {b"[n1:2", b"[n1:3"}
    assert b"[n0:" not in read(clean, run, "--node", "n1")
    assert read(clean, run, "--grep", "needle$").splitlines(keepends=True) == [lines_of(1, 1)[6], lines_of(1, 2)[6]]
    assert read(clean, run, "--rank", "1,2", "--attempt", "1", "--tail", "1") == lines_of(1, 1)[-1] + lines_of(2, 1)[-1]

    between = datetime.fromtimestamp((attempts[0]["ended_unix"] + attempts[1]["started_unix"]) / 2).isoformat()
    assert read(clean, run, "--rank", "0", "--since", between) == b"".join(lines_of(0, 2))
    assert read(clean, run, "--rank", "all", "--since", "0s") == b""
    rows = [json.loads(line) for line in read(clean, run, "--json", "--rank", "1", "--attempt", "2").splitlines()]
    assert {(row["node"], row["rank"], row["attempt"], row["source"]) for row in rows} == {
        ("n0", 1, 2, "rank_1/attempt_2.log")
    }
    assert "".join(row["line"] for row in rows if "x" in row["line"]) == "x" * 300_000 + "needle"
    assert rows[1]["line"] == HOSTILE.decode(errors="replace")
    times = [row["unix"] for row in rows]
    assert times == sorted(times) and times[-1] - times[0] >= 1
    assert attempts[1]["started_unix"] - 1 <= times[0] <= times[-1] <= attempts[1]["ended_unix"] + 1

    for words, said in (
        (["--rank", "0,99"], "no rank 99\nhint: ranks: 0 to 3"),
        (["--attempt", "7"], "no attempt 7\nhint: attempts: 1, 2"),
        (["--node", "n9"], "no node 'n9'\nhint: nodes: n0, n1"),
        (["--since", "soon"], "'soon' is neither a span nor a time"),
        (["--grep", "("], "is no regular expression"),
        (["--tail", "-1"], "is less than no line"),
    ):
        assert said in clean.nexa("logs", run, *words, code=2).stderr

    argv = [*NEXA[1:], "logs", run, "--rank", "0"]
    child = pexpect.spawn(sys.executable, argv, cwd=str(clean.root), env=clean.environment(), timeout=600)
    child.expect(pexpect.EOF)
    child.close()
    assert "[n0:0] \ufffdred\r\n" in child.before.decode()
    assert b"\x1b" not in child.before and b"owned" not in child.before
