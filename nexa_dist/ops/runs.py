"""What is known of runs: their state as it is now, their logs, and their end when it is asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError, StillRunning, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.finish import finish
from nexa_dist.ops.launch import stop_all
from nexa_dist.ops.replace import is_off
from nexa_dist.ops.reports import NEARLY_S, STOPPED
from nexa_dist.ops.spec import GRACE_S
from nexa_dist.ops.watch import Outcome
from nexa_dist.plan.cost import cost_usd, gpu_hours
from nexa_dist.plan.recovery import Decision, End, Kind
from nexa_dist.run import files
from nexa_dist.run.follow import fetch
from nexa_dist.run.nodes import Link, Ssh, connect, on_all, session
from nexa_dist.run.workspace import RunFolder

ACTIVE = ("starting", "running")
LAST_LOGS_S = 20.0
"""For the last lines of a run that is stopped; `nexa stop` does not wait for more."""
SETTLES_S = 45.0
"""For the words of a living supervisor about a run whose processes have ended; it fetches the last lines before."""
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


def summary(run: RunFolder) -> dict[str, Any]:
    """One row of `nexa runs`."""
    record = run.load()
    cluster = Cluster.from_json(record["cluster"])
    seconds = sum((a.get("ended_unix") or time.time()) - a["started_unix"] for a in record["attempts"])
    last = record["attempts"][-1] if record["attempts"] else {}
    return {
        "run": run.run_id,
        "state": "recovering" if pending(record) else last.get("state", "not started"),
        "cluster": cluster.name,
        "attempts": len(record["attempts"]),
        "minutes": round(seconds / 60, 1),
        "gpu_hours": round(gpu_hours(last.get("world_size", 0), seconds), 4),
        "cost_usd": round(cost_usd(cluster, seconds), 4),
        "cause": last.get("cause", ""),
    }


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


def reach(ssh: Ssh, nodes: Sequence[Node]) -> tuple[list[Link], dict[str, str]]:
    """Links to the nodes that answer, and why the others do not, by name."""

    def one(node: Node) -> Link | tuple[str, str]:
        try:
            return connect(ssh, [node])[0]
        except NexaError as error:
            return node.name, str(error)

    answers = on_all(nodes, one)
    return [a for a in answers if isinstance(a, Link)], dict(a for a in answers if not isinstance(a, Link))


def live(ctx: Context, run: RunFolder) -> dict[str, Any]:
    """The agents' own answers, by node; `unreachable` where there is none."""
    record = run.load()
    cluster = Cluster.from_json(record["cluster"])
    with session(ctx.runner, cluster) as ssh:
        links, silent = reach(ssh, [node for node in cluster.nodes if node.name in record["nodes"]])
        answers = on_all(links, lambda link: _status(link, record["nodes"][link.node.name]["run_dir"]))
    known = dict(zip((link.node.name for link in links), answers, strict=True))
    return {**known, **{name: {"state": "unreachable", "reason": why} for name, why in silent.items()}}


def _status(link: Link, run_dir: str) -> dict[str, Any]:
    try:
        answer = link.call("status", run_dir)
    except wire.Faulty as error:
        return {"state": "faulty", "reason": str(error)}
    except NexaError as error:
        return {"state": "unreachable", "reason": str(error)}
    return {**answer, "processes": len(answer.get("processes", ()))}


def stop(ctx: Context, run: RunFolder, grace_s: float = GRACE_S) -> dict[str, Any]:
    """Ends every process of the run on every node, with time for a checkpoint, and keeps it from starting again.

    Raises StillRunning when a node does not answer or has processes left; the others are stopped all the same.
    """
    began = ctx.now()
    try:
        files.write_text(run.stop_wish, STOPPED + "\n")
    except OSError as error:  # a full disk: the agents can be told all the same
        ctx.say(f"warning: between two attempts nobody will know of it: {error}")
    record = run.load()
    cluster = Cluster.from_json(record["cluster"])
    with session(ctx.runner, cluster) as ssh:
        links, silent = reach(ssh, [node for node in cluster.nodes if node.name in record["nodes"]])
        for node in cluster.nodes:
            if node.name in silent and is_off(ctx, cluster, node):
                ctx.detail(f"{node.name}: its machine is off, so nothing is left there")
                del silent[node.name]
        answers, unproven = _stopped(links, record, grace_s)
        silent |= unproven
        links = [link for link in links if link.node.name in answers]
        with contextlib.suppress(OSError):
            run_dirs = {name: entry["run_dir"] for name, entry in record["nodes"].items()}
            fetch(links, run_dirs, run.logs, LAST_LOGS_S)
        left = {name: answer["left"] for name, answer in answers.items()}
        # With a silent node the run stays open: it may still hold that node. A supervisor writes the end itself.
        if not silent and not _settled(ctx, run):
            record = run.load()
            if not run.supervised:
                _close(ctx, run, links, record, "stopped" if pending(record) else _state(answers, record, began))
    if silent or any(left.values()):
        faults = [*silent.values(), *(f"{name}: processes left: {pids}" for name, pids in left.items() if pids)]
        raise StillRunning(f"{run.run_id} may still run:\n" + "\n".join(faults), hint="stop it again when they answer")
    ended = {name: answer["ended"] for name, answer in answers.items()}
    state = run.load()["attempts"][-1]["state"]
    return {"run": run.run_id, "state": "stopping" if state in ACTIVE else state, "ended": ended, "left": left}


def _settled(ctx: Context, run: RunFolder) -> bool:
    """Whether the end of the run is written down; a living supervisor gets some time for it."""
    until = ctx.now() + SETTLES_S
    while going_on(run):
        if not run.supervised or ctx.now() > until:
            return False
        ctx.sleep(0.2)
    return True


def _state(answers: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any], asked_unix: float) -> str:
    """How the attempt ended: what failed before it was asked to stop did so by itself, what failed after did not."""
    states = {answer["state"] for answer in answers.values()}
    if states == {"completed"}:
        return "completed"
    skew = record["attempts"][-1].get("skew_s", {})
    ends = [(row, skew.get(name, 0.0)) for name, answer in answers.items() for row in answer.get("ranks", ())]
    own = any(row["code"] or row["signal"] for row, ahead in ends if row["at"] - ahead < asked_unix - NEARLY_S)
    return "failed" if own or (not ends and "failed" in states) else "stopped"


def _stopped(
    links: Sequence[Link], record: dict[str, Any], grace_s: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What each node answered, and why the others did not: one that makes no sense keeps nobody from the rest."""

    def one(link: Link) -> dict[str, Any] | str:
        try:
            return stop_all([link], record, STOPPED, grace_s)[0]
        except NexaError as error:
            return str(error)

    answers = dict(zip((link.node.name for link in links), on_all(links, one), strict=True))
    good = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
    return good, {name: answer for name, answer in answers.items() if isinstance(answer, str)}


def _close(ctx: Context, run: RunFolder, links: list[Link], record: dict[str, Any], state: str) -> None:
    """The end of a run that nobody else will write."""
    attempt = record["attempts"][-1]
    attempt["next"] = asdict(Decision("stop", STOPPED))
    kinds: dict[str, Kind] = {"completed": "completed", "failed": "rank"}
    cause = "it had failed before it was stopped" if state == "failed" else STOPPED
    span = {
        "first_step": attempt.get("resume_step"),
        "started_unix": attempt["started_unix"],
        "ended_unix": time.time(),
    }
    end = End(kinds.get(state, "stopped"), cause, **span)
    finish(ctx, run, links, record, Outcome(state, cause, {}, end))


def progress_of(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One row of progress from the agents' `status` answers, by node: the step that every rank has done, and what
    rank 0 tells. `lag_steps`: how far the durable store is behind the newest checkpoint. None where nobody knows."""
    told = [found for answer in answers.values() if isinstance(found := answer.get("progress"), dict)]
    steps = {rank: step for found in told for rank, step in (found.get("steps") or {}).items() if step is not None}
    first = next((found for found in told if "0" in (found.get("steps") or {})), told[0] if told else {})
    saved, durable = first.get("saved"), first.get("durable")
    return {
        "step": min(steps.values(), default=None),
        **{key: first.get(key) for key in ("of", "loss", "saved", "durable")},
        "lag_steps": None if saved is None or durable is None else saved - durable,
    }


def refuse_busy(ctx: Context, cluster: Cluster) -> None:
    """Two runs on one cluster would take each other's GPUs. Raises UsageError when one is still alive there."""
    for run in active_runs(ctx, cluster.name):
        states = {answer["state"] for answer in live(ctx, run).values()}
        if states & {"preparing", "running", "stopping"} or run.supervised:
            raise UsageError(
                f"cluster {cluster.name} is busy with {run.run_id}", hint=f"nexa attach {run.run_id}, or nexa stop it"
            )
        ctx.say(f"warning: {run.run_id} has ended, but nobody wrote its manifest: nexa attach {run.run_id} does")


def cluster_nodes(ctx: Context, cluster: Cluster) -> list[dict[str, Any]]:
    """One row per node of `nexa status`: whether it answers, over its pinned key."""

    def ask(node: Node) -> dict[str, Any]:
        row = {"node": node.name, "address": f"{node.address}:{node.port}", "ranks": node.gpus}
        try:
            got = ssh.run(node, ("true",), timeout_s=15)
            return {**row, "state": "up" if got.code == 0 else f"exit {got.code}"}
        except NexaError as error:
            return {**row, "state": "unreachable", "why": str(error)}

    with session(ctx.runner, cluster) as ssh:
        return on_all(cluster.nodes, ask)
