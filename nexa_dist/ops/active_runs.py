"""Active runs of a cluster, for commands that must not disturb them."""

from __future__ import annotations

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.run.workspace import RunFolder


def active_runs(ctx: Context, cluster: str = "") -> list[RunFolder]:
    """Runs on this cluster, or here on any, that nobody has closed. A torn record is passed over: it must not keep
    nodes alive."""
    found = []
    workspaces = ctx.workspace.users(cluster) if cluster else [ctx.workspace]
    for run in [run for workspace in workspaces for run in workspace.runs()]:
        try:
            record = run.load()
            if record.going_on and cluster in ("", record.cluster.name):
                found.append(run)
        except NexaError as error:
            ctx.say(f"warning: passed over: {error}")
    return found
