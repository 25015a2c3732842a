"""nexa stop: every process of a run ended on every node, and the end written down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from nexa_dist.errors import StillRunning
from nexa_dist.model import Decision, End, Kind
from nexa_dist.node.protocol import Reason
from nexa_dist.ops.context import Context
from nexa_dist.ops.notify.announcer import Announcer
from nexa_dist.ops.providers.table import is_off
from nexa_dist.ops.runs.agent_spec import GRACE_S
from nexa_dist.ops.runs.attempt_state import NEARLY_S
from nexa_dist.ops.runs.finish import finish
from nexa_dist.ops.runs.launch import stop_all
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.run import files
from nexa_dist.run.logs.stream import fetch
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, asked, reach, session
from nexa_dist.run.workspace import RunFolder

LAST_LOGS_S = 20.0
"""Seconds for the last lines of a run that is stopped; `nexa stop` does not wait for more."""
SETTLES_S = 45.0
"""Seconds for the words of a living supervisor about a run whose processes have ended; it fetches the last lines
before."""


def stop(ctx: Context, run: RunFolder, grace_s: float = GRACE_S) -> dict[str, Any]:
    """Ends every process of the run on every node, with time for a checkpoint, and keeps it from starting again.

    Raises StillRunning when a node does not answer or has processes left; the others are stopped all the same.
    """
    began = ctx.now()
    try:
        files.write_text(run.stop_wish, Reason.STOPPED + "\n")
    except OSError as error:  # a full disk: the agents can be told all the same
        ctx.say(f"warning: between two attempts nobody will know of it: {error}")
    record = run.load()
    cluster = record.cluster
    with session(ctx.runner, cluster) as ssh:
        links, silent = reach(ssh, [node for node in cluster.nodes if node.name in record.nodes])
        for node in cluster.nodes:
            if node.name in silent and is_off(ctx, cluster, node):
                ctx.detail(f"{node.name}: its machine is off, so nothing is left there")
                del silent[node.name]
        # An answer that makes no sense keeps nobody from the rest.
        answers, unproven = asked(links, lambda link: stop_all([link], record, Reason.STOPPED, grace_s)[0])
        silent |= unproven
        links = [link for link in links if link.node.name in answers]
        with contextlib.suppress(OSError):
            fetch(links, {name: record.run_dir(name) for name in record.nodes}, run.logs, LAST_LOGS_S)
        left = {name: answer["left"] for name, answer in answers.items()}
        # With a silent node the run stays open: it may still hold that node. A supervisor writes the end itself.
        if not silent and not _settled(ctx, run):
            record = run.load()
            if not run.supervised:
                _close(ctx, run, links, record, "stopped" if record.pending else _state(answers, record, began))
    if silent or any(left.values()):
        faults = [*silent.values(), *(f"{name}: processes left: {pids}" for name, pids in left.items() if pids)]
        raise StillRunning(f"{run.run_id} may still run:\n" + "\n".join(faults), hint="stop it again when they answer")
    ended = {name: answer["ended"] for name, answer in answers.items()}
    record = run.load()
    state = "stopping" if record.active else record.last.state
    return {"run": run.run_id, "state": state, "ended": ended, "left": left}


def _settled(ctx: Context, run: RunFolder) -> bool:
    """Tell whether the end of the run is written down; a living supervisor gets some time for it."""
    until = ctx.now() + SETTLES_S
    while run.load().going_on:
        if not run.supervised or ctx.now() > until:
            return False
        ctx.sleep(0.2)
    return True


def _state(answers: Mapping[str, Mapping[str, Any]], record: Run, asked_unix: float) -> str:
    """State in which the attempt ended: what failed before it was asked to stop did so by itself, what failed after did
    not."""
    states = {answer["state"] for answer in answers.values()}
    if states == {"completed"}:
        return "completed"
    skew = record.last.skew_s
    ends = [(row, skew.get(name, 0.0)) for name, answer in answers.items() for row in answer.get("ranks", ())]
    own = any(row["code"] or row["signal"] for row, ahead in ends if row["at"] - ahead < asked_unix - NEARLY_S)
    return "failed" if own or (not ends and "failed" in states) else "stopped"


def _close(ctx: Context, run: RunFolder, links: list[Link], record: Run, state: str) -> None:
    """The end of a run that nobody else will write."""
    attempt = record.last
    kinds: dict[str, Kind] = {"completed": "completed", "failed": "rank"}
    cause = "it had failed before it was stopped" if state == "failed" else Reason.STOPPED
    end = End(kinds.get(state, "stopped"), cause, first_step=attempt.resume_step, started_unix=attempt.started_unix,
              ended_unix=time.time())  # fmt: skip
    finish(ctx, run, links, record, Outcome(state, cause, {}, end), Decision("stop", Reason.STOPPED))
    announcer = Announcer(ctx, run, record)
    announcer.ended(state, cause)
    announcer.close(ctx.say)
