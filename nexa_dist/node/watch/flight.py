"""The flight recorder of collectives: asked for when ranks hang, read here, and told in figures.

torch keeps the last collectives of a rank and dumps them when one times out, or when something is written to a pipe
(NCCL's monitor does that; where ranks have no GPU, nexa_dist.train.control). The dump is a pickle, which can run
anything: it is read without any class, in a process of its own with limits, and leaves this node as JSON.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from ..oslib import agent_path, event
from ..protocol import Event
from ..rank import stem
from .hang import RANK_FOLDER

WAIT_S = 4.0
"""For the dumps: NCCL's monitor looks at its pipe once a second."""
OTHERS_S = 5.0
"""Seconds in which the agents of other nodes notice a hang, too: ranks whose peers were ended meanwhile fail, and dump
nothing."""
MOST_BYTES = 64 << 20
MEMORY_BYTES, CPU_S, READ_S = 2 << 30, 30, 60.0
MOST_GROUPS = 32
COUNTS = ("enqueued", "started", "completed")


class Plain(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers, and refuses every class and function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError("a dump of collectives holds no %s.%s" % (module[:40], name[:40]))


def places(run_dir: str) -> Iterator[tuple[int, str]]:
    """Each rank and the path of its dump; its pipe has the same name and ends in .pipe."""
    for name in sorted(os.listdir(run_dir)):
        if RANK_FOLDER.fullmatch(name):
            rank = int(name[5:])
            yield rank, "%s%d" % (stem(os.path.join(run_dir, name)), rank)


def forget(run_dir: str) -> None:
    """Removes pipes and dumps, which the next attempt would take for its own."""
    for _, path in places(run_dir):
        for name in (path, path + ".pipe"):
            with contextlib.suppress(OSError):
                os.unlink(name)


def ask(run_dir: str, frozen: set[int], wait_s: float = WAIT_S, hold_s: float = 0.0) -> None:
    """Has every rank that listens dump its collectives, and waits for that, `hold_s` at least. The `frozen` ones
    cannot; where none can, nobody waits."""
    asked, began = [], time.monotonic()
    for path in [path for rank, path in places(run_dir) if rank not in frozen]:
        with contextlib.suppress(OSError):  # it has no pipe, or nobody listens any more
            pipe = os.open(path + ".pipe", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(pipe, b"1")
            finally:
                os.close(pipe)
            asked.append(path)
    least = hold_s if asked else 0.0
    while time.monotonic() < began + (least if all(_whole(path) for path in asked) else max(least, wait_s)):
        time.sleep(0.05)


def _whole(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == pickle.STOP
    except OSError:
        return False


def tell(run_dir: str, attempt: int) -> None:
    """Once the ranks are gone: what dumps there are, as events and as JSON."""
    if any(os.path.lexists(path) for _, path in places(run_dir)):
        argv = [sys.executable, "-S", "-E", agent_path(), "flight", run_dir, str(attempt)]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=READ_S, preexec_fn=_limits, check=False)
    forget(run_dir)


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def main(run_dir: str, attempt: int) -> int:
    """The command `flight`: reads every dump. One that is no dump is said to be none, and the others are read."""
    for rank, path in places(run_dir):
        if not os.path.lexists(path):
            continue
        try:
            dump = read(path)
            told, text = groups(dump), json.dumps(dump).encode()
        except Exception as error:  # whatever a rank wrote there
            print("flight recorder of rank %d: %s" % (rank, str(error)[:200]), file=sys.stderr)
            continue
        event(run_dir, Event.FLIGHT, rank=rank, groups=told)
        kept = os.path.join(os.path.dirname(path), "flight.attempt_%d.json.gz" % attempt)
        with contextlib.suppress(OSError), gzip.open(kept, "wb") as file:
            file.write(text)
    return 0


def read(path: str) -> dict[str, Any]:
    """A dump as plain values. Raises ValueError, OSError, or what a damaged pickle raises."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError("more than %d bytes" % MOST_BYTES)
    dump = Plain(io.BytesIO(data)).load()
    if not isinstance(dump, dict):
        raise ValueError("no dump of torch's flight recorder")
    return dump


def groups(dump: dict[str, Any]) -> list[dict[str, Any]]:
    """How far this rank is in each process group: numbers of the last collectives enqueued, started and completed (-1:
    none), and the first one that has not completed. Groups that wait come first."""
    entries = [e for e in dump.get("entries") or [] if isinstance(e, dict) and not e.get("is_p2p")]
    made: list[dict[str, Any]] = []
    for key, status in (dump.get("pg_status") or {}).items():
        mine = [e for e in entries if str(e.get("pg_id")) == str(key)]
        if not mine:
            continue
        counts = {word: _count(status.get("last_%s_collective" % word)) for word in COUNTS}
        open_ones = [e for e in mine if _count(e.get("collective_seq_id")) > counts["completed"]]
        at = min(open_ones, key=lambda e: _count(e.get("collective_seq_id"))) if open_ones else mine[-1]
        name, desc = (*map(str, at.get("process_group") or ()), "", "")[:2]
        made.append(
            {
                "name": name[:200], "desc": desc[:200], **counts, "seq": _count(at.get("collective_seq_id")),
                "op": str(at.get("profiling_name"))[:200], "state": str(at.get("state"))[:40],
                "sizes": json.dumps(at.get("input_sizes"))[:200],
            }
        )  # fmt: skip
    made.sort(key=lambda group: group["completed"] >= group["enqueued"])
    return made[:MOST_GROUPS]


def _count(value: Any) -> int:
    """Numbers are texts in torch's own JSON."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,15}", value) else value
    return number if type(number) is int and -1 <= number < 1 << 50 else -1
