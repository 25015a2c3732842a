"""Runs tests while their processes are stopped at random, to find what depends on when a process is scheduled.

    scripts/shake tests/processes                 with a seed that is printed
    scripts/shake --seed 7 -k 'recovery or runs'  the words after ours are pytest's

A process of the tests is stopped (SIGSTOP) about three times a second and goes on up to two seconds later: pytest's
workers, the programs that they start and the daemons of these. The seed fixes the pauses and the draws; which process
a draw meets is up to the machine. Never stopped: pytest's first process, and sudo and what runs below it, since sudo
stops itself with its child and nobody tells it to go on. A test that stops processes itself may see one of its own go
on too early. At the end, or when this is interrupted, everything goes on. Threads begin late, too (late_threads.py).
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MARK = "NEXA_SHAKE"
"""Variable of the tests' environment, by which a daemon that has left their process tree is found."""
PAUSE_S = 0.3
"""Between two stops, on average."""
Ident = tuple[int, int]
"""Process id and start time: an id alone is given away again."""


@dataclass(frozen=True)
class Process:
    parent: int
    name: str
    state: str
    start: int
    marked: bool = False


def read(pid: int, mark: bytes) -> Process | None:
    """A process as /proc shows it; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except (OSError, UnicodeDecodeError):
        return None
    name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return Process(int(rest[1]), name, rest[0], int(rest[19]), mark in environment)


def read_all(mark: bytes) -> dict[int, Process]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return {pid: found for pid in pids if (found := read(pid, mark))}


def lineage(table: Mapping[int, Process], pid: int) -> list[int]:
    """A process, its parent, that one's parent and so on, as far as the table knows them."""
    line: list[int] = []
    while pid in table and pid not in line:  # a table that is read piece by piece may hold a circle
        line.append(pid)
        pid = table[pid].parent
    return line


def eligible(table: Mapping[int, Process], root: int, seen: set[Ident]) -> list[int]:
    """Processes of the tests that may be stopped: below `root`, marked, or below one that is or was. Adds them to
    `seen`, so that one whose parent has ended is still known."""
    found = []
    for pid in sorted(table.keys() - {root, os.getpid()}):
        line = lineage(table, pid)
        line = line[: line.index(root)] if (below := root in line) else line
        known = below or any(table[one].marked or (one, table[one].start) in seen for one in line)
        if known and "sudo" not in [table[one].name for one in line]:
            found.append(pid)
    seen |= {(pid, table[pid].start) for pid in found}
    return [pid for pid in found if table[pid].state not in "TtZX"]


@dataclass
class Shaker:
    root: int
    """pytest's first process."""
    chance: random.Random
    longest_s: float
    table: Callable[[], Mapping[int, Process]]
    stops: int = 0
    seen: set[Ident] = field(default_factory=set)
    stopped: list[tuple[float, int, int]] = field(default_factory=list)
    """(when it goes on, pid, start time), a heap."""

    def stop_one(self, now: float) -> None:
        draw, length_s = self.chance.random(), self.chance.uniform(0, self.longest_s)
        table = self.table()
        if victims := eligible(table, self.root, self.seen):
            pid = victims[int(draw * len(victims))]
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP)
                heapq.heappush(self.stopped, (now + length_s, pid, table[pid].start))
                self.stops += 1

    def go_on(self, now: float) -> None:
        """Lets those go on whose time is over."""
        while self.stopped and self.stopped[0][0] <= now:
            _, pid, start = heapq.heappop(self.stopped)
            process = read(pid, b"")
            if process and process.start == start:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGCONT)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/shake", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--longest-s", type=float, default=2.0, help="of a stop (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing is stopped any more")
    parser.add_argument("--workers", default="4", help="tests at once (%(default)s)")
    asked, words = parser.parse_known_args()
    token = f"{MARK}={os.getpid()}-{asked.seed}"
    tests = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "tests.late_threads", "-n", asked.workers, *words],
        cwd=REPO,
        env={**os.environ, MARK: token.partition("=")[2]},
    )
    shaker = Shaker(tests.pid, random.Random(asked.seed), asked.longest_s, lambda: read_all(token.encode()))
    began = time.monotonic()
    due = began
    try:
        while tests.poll() is None:
            now = time.monotonic()
            if now >= due and now - began < asked.minutes * 60:
                shaker.stop_one(now)
                due = now + shaker.chance.expovariate(1 / PAUSE_S)
            shaker.go_on(now)
            time.sleep(0.02)
    except KeyboardInterrupt:
        pass  # pytest has heard it too, and ends
    finally:
        shaker.go_on(float("inf"))
        tests.wait()
    print(f"{shaker.stops} stops in {time.monotonic() - began:.0f} s, seed {asked.seed}", file=sys.stderr)
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
