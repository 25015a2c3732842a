"""Results that come by themselves when a run has ended, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.work import kept, results
from nexa_dist.ops.work.pulled import Pulled
from nexa_dist.ops.work.results import Fetched
from nexa_dist.plan.runs.results import counted
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link
from nexa_dist.run.workspace import RunFolder

BY_ITSELF_BYTES = 2 << 30
BY_ITSELF_S, SHORT_S = 300.0, 60.0
"""Seconds at most that outputs take by themselves; the short ones where a budget or deadline has ended the run."""


def come(ctx: Context, run: RunFolder, links: Sequence[Link], record: Run, *, short: bool) -> dict[str, Any]:
    """Fetch what comes by itself when a run has ended (its outputs, within bounds); returns a part of its manifest.
    Empty when it wrote nothing. Nothing that goes wrong here is the run's fault: it is said."""
    try:
        left, mute = results.look_all(links, record)
        for why in mute.values():
            ctx.say(f"warning: what the run wrote there did not come: {why}")
        with results.pulling(run):
            place = Pulled.of(run).at(run.path)
            left = kept.with_bucket(ctx, record, left, run.path)
            fetched = results.choose(left, False, place, run.path, BY_ITSELF_BYTES)
            seconds = SHORT_S if short else BY_ITSELF_S
            results.bring(ctx, run, links, record, fetched, run.path, seconds)
            kept.bring(ctx, run, record, fetched, run.path, seconds)
    except (NexaError, OSError) as error:
        ctx.say(f"warning: the outputs of {run.run_id} did not come: {error}")
        return {}
    except KeyboardInterrupt:
        ctx.say(f"interrupted: nexa pull {run.run_id} brings the rest of the outputs")
        return {}
    for line in lines(ctx, run, fetched, run.path):
        ctx.say(line)
    return told_of(ctx, fetched, run.path)


def lines(ctx: Context, run: RunFolder, fetched: Fetched, folder: Path) -> Iterator[str]:
    """Lines about the files of a run."""
    if fetched.here:
        yield f"outputs: {counted([one.row for one in fetched.here])} in {ctx.workspace.near(folder / 'outputs')}"
    if fetched.later:
        yield f"too much to come by itself: {counted(fetched.later, names=True)}; nexa pull {run.run_id} brings it"
    for name, why in list(fetched.failed.items())[:5]:
        yield f"warning: {name} did not come: {why}"
    if fetched.failed:
        yield f"  {len(fetched.failed)} files did not come; nexa pull {run.run_id} tries again"
    if fetched.unnamed:
        yield (
            f"written, and not named in outputs: {counted(fetched.unnamed, names=True)}; "
            f"nexa pull {run.run_id} --all brings it"
        )


def told_of(ctx: Context, fetched: Fetched, folder: Path) -> dict[str, Any]:
    """The same for the manifest."""
    rows = {"files": [one.row for one in fetched.here], "later": fetched.later, "unnamed": fetched.unnamed}
    if not any(rows.values()) and not fetched.failed:
        return {}
    where = os.path.relpath(folder / "outputs", ctx.workspace.root) if fetched.here else None
    sums = {key: {"count": len(found), "bytes": sum(row.bytes for row in found)} for key, found in rows.items()}
    return {"folder": where, **sums, "failed": len(fetched.failed)}
