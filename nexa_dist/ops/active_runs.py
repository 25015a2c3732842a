"""Runs of a cluster by their records, and those that go on, which other commands must not disturb."""

from __future__ import annotations

from collections.abc import Iterator

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.run.record import Run
from nexa_dist.run.workspace import RunFolder


def recorded(ctx: Context, cluster: str = "") -> Iterator[tuple[RunFolder, Run]]:
    """Runs on this cluster, or here on any, with their records. A torn one is said, and passed over."""
    workspaces = ctx.workspace.users(cluster) if cluster else [ctx.workspace]
    for run in [run for workspace in workspaces for run in workspace.runs()]:
        try:
            record = run.load()
        except NexaError as error:
            ctx.say(f"warning: passed over: {error}")
            continue
        if cluster in ("", record.cluster.name):
            yield run, record


def active_runs(ctx: Context, cluster: str = "") -> list[RunFolder]:
    """Those of them that nobody has closed; a torn record must not keep nodes alive."""
    return [run for run, record in recorded(ctx, cluster) if record.going_on]
