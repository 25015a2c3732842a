"""nexa stop of a run that a job of Slurm's leads: the job ends, and the run is written down as stopped."""

from __future__ import annotations

import os
from typing import Any

from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.ops.context import Context
from nexa_dist.ops.slurm.attempt import Leader
from nexa_dist.ops.slurm.submit import kept
from nexa_dist.run.slurm.commands import Slurm
from nexa_dist.run.workspace import RunFolder

GONE_S, LOOK_S = 180.0, 1.0
"""Seconds for a job that was cancelled to leave the queue, KillWait among them; and between two looks."""


def stop(ctx: Context, run: RunFolder) -> dict[str, Any]:
    """Cancel the job (gone already: nothing to do), wait until Slurm has it in no queue, and close the run. Raises
    NexaError when Slurm does not answer, StillRunning when it does not let go of the job in time."""
    told = kept(run)
    if "job" not in told:  # nexa was killed before it knew the number
        name = f"nexa-{told['config']['name']}"
        raise NexaError(
            f"nobody wrote down which job leads {run.run_id}", hint=f"squeue --me --name={name}, then scancel"
        )
    number = str(told["job"])
    slurm = Slurm(ctx.runner)
    before = slurm.waiting(number)
    if before is not None:
        slurm.cancel(number)
    until = ctx.now() + GONE_S
    while (left := slurm.waiting(number)) is not None:
        if ctx.now() > until:
            raise StillRunning(
                f"job {number} is still {left.state} after {GONE_S:.0f} s", hint=f"squeue -j {number} shows why"
            )
        ctx.sleep(LOOK_S)
    state = Leader(ctx, run, {**os.environ, "SLURM_JOB_ID": number}).settle()
    return {"run": run.run_id, "state": state, "job": number, "was": before.state if before else "gone"}
