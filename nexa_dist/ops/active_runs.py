"""Runs of a cluster by their records, and those that go on, which other commands must not disturb; how far one came."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.run import files
from nexa_dist.run.logs.mirror import EVENTS
from nexa_dist.run.record import Run
from nexa_dist.run.workspace import RunFolder

NEWEST_BYTES = 1 << 16
"""Bytes of a node's events that are read, from the end."""


def recorded(ctx: Context, cluster: str = "", *, quiet: bool = False) -> Iterator[tuple[RunFolder, Run]]:
    """Runs on this cluster, or here on any, with their records. A torn one is passed over, and said unless `quiet`."""
    workspaces = ctx.workspace.users(cluster) if cluster else [ctx.workspace]
    for run in [run for workspace in workspaces for run in workspace.runs()]:
        try:
            record = run.load()
        except NexaError as error:
            if not quiet:
                ctx.say(f"warning: passed over: {error}")
            continue
        if cluster in ("", record.cluster.name):
            yield run, record


def active_runs(ctx: Context, cluster: str = "") -> list[RunFolder]:
    """Those of them that nobody has closed; a torn record must not keep nodes alive."""
    return [run for run, record in recorded(ctx, cluster) if record.going_on]


def newest_events(run: RunFolder) -> Iterator[dict[str, Any]]:
    """The last that each node told, as it was mirrored."""
    for path in sorted(run.logs.glob(f"*/{EVENTS}")):
        yield from wire.events(files.tail(path, NEWEST_BYTES).splitlines())


def progress(run: RunFolder) -> dict[str, Any]:
    """The step that every rank has done and rank 0's loss, as last mirrored; None where none was reported."""
    steps: dict[str, int] = {}
    loss = None
    for event in newest_events(run):
        told = {rank: step for rank, step in (event.get("steps") or {}).items() if step is not None}
        steps |= told
        loss = event.get("loss", loss) if "0" in told else loss
    return {"step": min(steps.values(), default=None), "loss": loss}
