"""How an attempt ended, by what its agents have written and Slurm has said of its job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexa_dist import wire
from nexa_dist.model import End
from nexa_dist.node.protocol import Event, Reason
from nexa_dist.ops.active_runs import NEWEST_BYTES
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.attempt_state import AttemptState
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.plan.slurm.ending import NOTICES, Cause
from nexa_dist.run import files
from nexa_dist.run.logs.follower import How
from nexa_dist.run.logs.items import AgentEvent, Ended
from nexa_dist.run.logs.mirror import EVENTS
from nexa_dist.run.logs.stream import follow
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link
from nexa_dist.run.workspace import RunFolder

CANCELLED = "the job was cancelled"
HEARD_S = 30.0
"""Seconds for what the agents have written: nothing more comes, since the step is over."""
REST_S = 10.0
LOOK_S = 0.5


def wait_for_agents(ctx: Context, record: Run, seconds: float) -> None:
    """Until every agent has written its last word: srun ends before them when Slurm signals the whole job."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not all(_ended(record, name) for name in record.last.ranks):
        ctx.sleep(LOOK_S)


def _ended(record: Run, name: str) -> bool:
    told = wire.events(files.tail(Path(record.run_dir(name)) / EVENTS, NEWEST_BYTES).splitlines())
    return any(row["event"] == Event.ENDED and row.get("attempt") == record.last.attempt for row in told)


def outcome_of(run: RunFolder, record: Run, links: Sequence[Link], why: Cause) -> Outcome:
    """The outcome of the newest attempt; its logs and events are in the run's folder then."""
    run_dirs = {name: record.run_dir(name) for name in record.last.ranks}
    state = AttemptState(tuple(run_dirs), record.last.attempt, record.last.ranks, skew_s=record.last.skew_s)
    taking_part = [link for link in links if link.node.name in run_dirs]
    how = How(replay=True, contact=False, attempt=record.last.attempt)
    stream = follow(taking_part, run_dirs, run.logs, how)
    until = time.monotonic() + HEARD_S
    try:
        while not state.done and time.monotonic() < until:
            if isinstance(item := stream.next(), (AgentEvent, Ended)):
                state.step(item)
        for name in set(run_dirs) - set(state.ends):
            state.lost(name, "its agent did not begin", "absent")
        for _ in stream.rest(REST_S):
            pass
        behind = {name: size for name, size in stream.behind().items() if size}
    finally:
        stream.close()
    end = state.end((), record.last.resume_step, record.last.started_unix, time.time())
    told, end = judged(state.state, end, why)
    left = {name: _left(state.ends[name]) for name in run_dirs}
    source = (end.node, f"rank_{end.rank}/attempt_{state.attempt}.log") if end.rank >= 0 else None
    return Outcome(told, end.words, left, end, source, saved=state.saved, saved_unix=state.saved_unix, behind=behind)


def judged(state: str, end: End, why: Cause) -> tuple[str, End]:
    """State and end of an attempt, when Slurm's word is added to that of the agents."""
    if state == "completed":
        return state, end
    if why in NOTICES:
        return "failed", replace(end, kind="notice", words=NOTICES[why], rank=-1)
    if why == "cancelled":
        return "stopped", replace(end, kind="stopped", words=CANCELLED, rank=-1)
    if end.words == Reason.SCHEDULER:  # which Slurm knows nothing of: somebody sent the signal by hand
        return "stopped", replace(end, kind="stopped", words="somebody sent the job SIGTERM", rank=-1)
    return state, end


def _left(end: Mapping[str, Any]) -> int | None:
    """Processes that an agent left; None where it did not say."""
    left = end.get("left")
    return len(left) if isinstance(left, Sequence) else None
