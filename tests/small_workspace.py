"""A workspace as nexa leaves it, made by hand: one cluster on this machine that is off by now, one run that ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nexa_dist.run import trust

CLUSTER, RUN = "lab", "train_20260101_000000_tiny"
BEGAN = 1_767_225_600.0
READING = {
    "status": ("status",),
    "runs": ("runs",),
    "logs": ("logs", RUN),
    "why": ("why", RUN),
    "cost": ("cost", CLUSTER),
    "cost RUN": ("cost", RUN),
    "timeline": ("timeline",),
}
"""The verbs that read what nexa wrote, by what they are called here."""


def make(root: Path) -> Path:
    """Fills `root`, which is there, and marks it as ours below XDG_STATE_HOME. Nobody listens at the node's address."""
    trust.claim(root)
    folder, run = root / ".nexa" / "clusters" / CLUSTER, root / "runs" / RUN
    logs = run / "logs" / "n0"
    for path in (folder / "ssh", logs / "rank_0"):
        path.mkdir(parents=True, exist_ok=True)
    cluster = {
        "name": CLUSTER,
        "provider": "local",
        "nodes": [{"name": "n0", "address": "127.0.0.201", "gpus": 1, "port": 9}],
        "layout": {"python": "python3", "scratch": "/tmp/s", "shared": "/tmp/h", "durable": "/tmp/d"},
        "ssh_config": str(folder / "ssh" / "ssh_config"),
    }
    attempt = {
        "attempt": 1, "state": "failed", "started_unix": BEGAN + 30, "ended_unix": BEGAN + 90, "world_size": 1,
        "rdzv": "127.0.0.201:29500", "cause": "rank 0 on n0: exit code 1", "ranks": {"n0": [0, 0]},
        "end": {"kind": "rank", "words": "rank 0 on n0: exit code 1", "node": "n0", "rank": 0},
        "next": {"action": "stop"},
    }  # fmt: skip
    record = {
        "run_id": RUN, "cluster": cluster, "config": {"name": "tiny", "script": "train.py"},
        "nodes": {"n0": {"run_dir": f"/tmp/s/{RUN}"}}, "attempts": [attempt],
    }  # fmt: skip
    (folder / "ssh" / "ssh_config").write_text("Host n0\n    HostName 127.0.0.201\n    Port 9\n")
    (folder / "cluster.json").write_text(json.dumps(cluster))
    _lines(
        folder / "ledger.jsonl",
        {"at": BEGAN, "event": "node_start", "node": "n0", "id": "n0@1", "offer": "local", "usd_per_hour": 0.5},
        {"at": BEGAN + 600, "event": "node_stop", "node": "n0", "id": "n0@1", "why": "teardown", "source": "clock"},
    )
    _lines(
        folder / "journal.jsonl",
        {"at": BEGAN, "step": "create", "state": "intent"},
        {"at": BEGAN + 5, "step": "create", "state": "done", "seconds": 5.0},
    )
    (run / "run.json").write_text(json.dumps(record))
    _lines(
        logs / "agent.jsonl",
        {"event": "started", "attempt": 1, "at": BEGAN + 31},
        {"event": "progress", "at": BEGAN + 80, "steps": {"0": 7}, "loss": 1.5},
        {"event": "rank_exit", "at": BEGAN + 89, "rank": 0, "code": 1, "signal": 0},
    )
    (logs / "rank_0" / "attempt_1.log").write_text("step 7\nTraceback (most recent call last):\nValueError: no\n")
    return root


def _lines(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
