"""An agent on another machine that shares the run's folder, as a login host of Slurm's sees it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from nexa_dist.node.protocol import VERSION
from nexa_dist.node.record import SILENT_S, Record


@pytest.mark.parametrize(
    "host, silent_s, state",
    [
        ("another", 5.0, "running"),
        ("another", SILENT_S + 5, "lost"),
        (os.uname().nodename, 5.0, "lost"),
        (None, 5.0, "lost"),
    ],
)
def test_its_process_says_nothing_here_but_its_heartbeats_do(
    tmp_path: Path, host: str | None, silent_s: float, state: str
) -> None:
    (tmp_path / "generation").write_text("1")
    rows = [
        {"event": "started", "at": 1.0, "attempt": 1, "version": VERSION},
        {"event": "torchrun", "at": 2.0, "pid": 9},
    ]
    log = tmp_path / "agent.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "agent.pid").write_text(json.dumps({"pid": 4_000_000, "start_time": 1, "attempt": 1, "host": host}))
    os.utime(log, (time.time() - silent_s,) * 2)
    assert Record(str(tmp_path)).read().state()["state"] == state
