"""Which runs are still open on a cluster. Read by whoever must not disturb them."""

from __future__ import annotations

from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.run.workspace import RunFolder

ACTIVE = ("starting", "running")
PENDING = ("restart", "replace", "shrink", "wait")
"""Decisions after which a run goes on."""


def active(run: RunFolder) -> bool:
    """Whether the newest attempt has not been closed."""
    attempts = run.load()["attempts"]
    return bool(attempts) and attempts[-1]["state"] in ACTIVE


def pending(record: dict[str, Any]) -> bool:
    """Whether the newest attempt has ended and another one was decided, but not begun."""
    attempts = record["attempts"]
    return bool(attempts) and (attempts[-1].get("next") or {}).get("action") in PENDING


def going_on(run: RunFolder) -> bool:
    """Whether more may come: an attempt is not closed, or another one was decided."""
    return active(run) or pending(run.load())


def active_runs(ctx: Context, cluster: str = "") -> list[RunFolder]:
    """Runs on this cluster, or here on any, that nobody has closed. A torn record is passed over: it must not keep
    nodes alive."""
    found = []
    workspaces = ctx.workspace.users(cluster) if cluster else [ctx.workspace]
    for run in [run for workspace in workspaces for run in workspace.runs()]:
        try:
            record = run.load()
            if record["cluster"]["name"] == (cluster or record["cluster"]["name"]) and (active(run) or pending(record)):
                found.append(run)
        except NexaError as error:
            ctx.say(f"warning: passed over: {error}")
    return found
