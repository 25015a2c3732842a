"""Rows of `nexa runs`: state and cost of a run, how far it came, and what was changed for it."""

from __future__ import annotations

import json
import time
from typing import Any

from nexa_dist import wire
from nexa_dist.node.protocol import Event
from nexa_dist.ops.active_runs import NEWEST_BYTES, progress
from nexa_dist.plan.money.cost import cost_usd, gpu_hours
from nexa_dist.plan.money.phases import SKEW_S
from nexa_dist.plan.runs.snapshot import flat
from nexa_dist.run import files
from nexa_dist.run.logs.mirror import EVENTS
from nexa_dist.run.record import Attempt
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact

SHOWN = 3
"""Changes in a row; the rest is counted."""
LABELS = ("name", "stage", "experiment", "tags")
"""Keys of the config that say nothing of what is done."""


def summary(run: RunFolder) -> dict[str, Any]:
    """One row of `nexa runs`."""
    record = run.load()
    seconds = sum((row.ended_unix or time.time()) - row.started_unix for row in record.attempts)
    last = record.last if record.attempts else Attempt(0, "not started", 0.0, 0, "")
    return {
        "run": run.run_id,
        "state": "recovering" if record.pending else last.state,
        "cluster": record.cluster.name,
        "attempts": len(record.attempts),
        "minutes": round(seconds / 60, 1),
        "gpu_hours": round(gpu_hours(last.world_size, seconds), 4),
        "cost_usd": round(cost_usd(record.cluster, seconds), 4),
        "cause": last.cause,
    }


def figures(run: RunFolder, before: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """experiment, step, loss and changed, for one row. `before` holds the config of the newest earlier run by name, and
    takes this one's: what changed is against that."""
    record = run.load()
    config: dict[str, Any] = redact(record.config)
    name = str(config.get("name"))
    changes = changed(before[name], config) if name in before else []
    before[name] = config
    more = [f"and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
    return {"experiment": config.get("experiment"), **progress(run), "changed": ", ".join(changes[:SHOWN] + more)}


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`trainer.steps=60`, `args=--lr 3e-4`: what `new` has otherwise."""
    was, now = dict(flat(old, ".")), {key: value for key, value in flat(new, ".") if key not in LABELS}
    return [f"{key}={_word(value)}" for key, value in now.items() if key not in was or was[key] != value]


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return value if isinstance(value, str) else json.dumps(value)


def start_times(run: RunFolder) -> tuple[float, float] | None:
    """Start times of a run's launcher (torchrun) and of its first rank, by their events and this machine's clock; None
    when its nodes have not told."""
    found: dict[str, float] = {}
    for node, ahead in run.load().attempts[0].skew_s.items():
        text = files.read_text(run.logs / node / EVENTS, NEWEST_BYTES)
        for told in wire.events(text.encode().splitlines()):
            at = told["at"] - (ahead if abs(ahead) >= SKEW_S else 0.0)
            if told["event"] in (Event.TORCHRUN, Event.RANK_START):
                found[told["event"]] = min(found.get(told["event"], at), at)
    return (found[Event.TORCHRUN], found[Event.RANK_START]) if len(found) == 2 else None
