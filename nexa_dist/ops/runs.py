"""What is known of runs: their state as it is now, their logs, and their end when it is asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nexa_dist.errors import NexaError, StillRunning, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.finish import finish
from nexa_dist.ops.launch import GRACE_S, stop_all
from nexa_dist.ops.watch import Outcome
from nexa_dist.plan.cost import cost_usd, gpu_hours
from nexa_dist.run.follow import MAX_LINE_BYTES, Ended, Line, Marks, Quiet, follow, marks
from nexa_dist.run.nodes import Link, Ssh, connect, on_all, session
from nexa_dist.run.workspace import RunFolder

ACTIVE = ("starting", "running")


def active(run: RunFolder) -> bool:
    """Whether the newest attempt has not been closed."""
    attempts = run.load()["attempts"]
    return bool(attempts) and attempts[-1]["state"] in ACTIVE


def summary(run: RunFolder) -> dict[str, Any]:
    """One row of `nexa runs`."""
    record = run.load()
    cluster = Cluster.from_json(record["cluster"])
    seconds = sum((a.get("ended_unix") or time.time()) - a["started_unix"] for a in record["attempts"])
    last = record["attempts"][-1] if record["attempts"] else {}
    return {
        "run": run.run_id,
        "state": last.get("state", "not started"),
        "cluster": cluster.name,
        "attempts": len(record["attempts"]),
        "minutes": round(seconds / 60, 1),
        "gpu_hours": round(gpu_hours(last.get("world_size", 0), seconds), 4),
        "cost_usd": round(cost_usd(cluster, seconds), 4),
        "cause": last.get("cause", ""),
    }


def active_runs(ctx: Context, cluster: str) -> list[RunFolder]:
    """Runs on this cluster that nobody has closed. A torn record is passed over: it must not keep nodes alive."""
    found = []
    for run in ctx.workspace.runs():
        try:
            if run.load()["cluster"]["name"] == cluster and active(run):
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
        answers = on_all(links, lambda link: link.call("status", record["nodes"][link.node.name]["run_dir"]))
    known = {
        link.node.name: {**answer, "processes": len(answer["processes"])}
        for link, answer in zip(links, answers, strict=True)
    }
    return {**known, **{name: {"state": "unreachable", "reason": why} for name, why in silent.items()}}


def stop(ctx: Context, run: RunFolder, grace_s: float = GRACE_S) -> dict[str, Any]:
    """Ends every process of the run on every node, with time for a checkpoint.

    Raises StillRunning when a node does not answer or has processes left; the others are stopped all the same.
    """
    record = run.load()
    cluster = Cluster.from_json(record["cluster"])
    with session(ctx.runner, cluster) as ssh:
        links, silent = reach(ssh, [node for node in cluster.nodes if node.name in record["nodes"]])
        answers = stop_all(links, record, "stopped by the user", grace_s)
        _mirror(links, record, run)
        left = {link.node.name: answer["left"] for link, answer in zip(links, answers, strict=True)}
        if active(run) and not silent:  # with a silent node the run stays open: it may still hold that node
            states = {answer["state"] for answer in answers}
            state = "completed" if states == {"completed"} else "failed" if "failed" in states else "stopped"
            finish(ctx, run, links, record, Outcome(state, "stopped by the user", {}))
    if silent or any(left.values()):
        faults = [*silent.values(), *(f"{name}: processes left: {pids}" for name, pids in left.items() if pids)]
        raise StillRunning(f"{run.run_id} may still run:\n" + "\n".join(faults), hint="stop it again when they answer")
    ended = {link.node.name: answer["ended"] for link, answer in zip(links, answers, strict=True)}
    return {"run": run.run_id, "state": run.load()["attempts"][-1]["state"], "ended": ended, "left": left}


def _mirror(links: list[Link], record: dict[str, Any], run: RunFolder) -> None:
    """Brings the logs on the controller up to date."""
    for item in _items(links, record, run, once=True):
        del item


def _items(
    links: list[Link], record: dict[str, Any], run: RunFolder, *, once: bool, seen: dict[str, Marks] | None = None
) -> Iterator[Line]:
    run_dirs = {name: entry["run_dir"] for name, entry in record["nodes"].items()}
    stream = follow(links, run_dirs, run.logs, once=once, seen=seen)
    open_nodes = {link.node.name for link in links}
    try:
        while open_nodes:
            item = stream.next()
            if isinstance(item, Line):
                yield item
            elif isinstance(item, Ended) or (isinstance(item, Quiet) and once and item.seconds > 20):
                open_nodes.discard(item.node)
    finally:
        stream.close()


def wanted(ranks: set[int] | None, node: str | None, grep: str | None) -> Callable[[Line], bool]:
    """The filter of `nexa logs`. Raises NexaError for a pattern that is none."""
    try:
        pattern = re.compile(grep.encode()) if grep else None
    except re.error as error:
        raise NexaError(f"--grep {grep!r} is no regular expression: {error}", code=2) from error

    def keep(line: Line) -> bool:
        return (
            (ranks is None or line.rank in ranks)
            and (node is None or line.node == node)
            and (pattern is None or pattern.search(line.text) is not None)
        )

    return keep


def logs(ctx: Context, run: RunFolder, *, follow_on: bool) -> Iterator[Line]:
    """Every line of every log, first what is on the controller, then what comes from the nodes."""
    record = run.load()
    is_active = active(run)
    folders = sorted(run.logs.iterdir()) if run.logs.is_dir() else []
    seen = {folder.name: marks(folder) for folder in folders} if is_active else None
    yield from _mirrored(run, seen)
    if not is_active:
        return
    cluster = Cluster.from_json(record["cluster"])
    with session(ctx.runner, cluster) as ssh:
        try:
            links = connect(ssh)
        except NexaError as error:
            ctx.say(f"warning: only what was fetched before is shown: {error}")
            return
        yield from _items(links, record, run, once=not follow_on, seen=seen)


def _mirrored(run: RunFolder, seen: dict[str, Marks] | None) -> Iterator[Line]:
    """Lines on the controller, up to `seen` where it is given: what comes behind it is about to be followed."""
    for path in sorted(run.logs.rglob("*.log")):
        node, source = path.relative_to(run.logs).as_posix().split("/", 1)
        end = path.stat().st_size if seen is None else seen.get(node, {}).get(source, 0)
        with path.open("rb") as file:
            while file.tell() < end and (text := file.readline(MAX_LINE_BYTES)):
                yield Line(node, source, text.rstrip(b"\n"))


def refuse_busy(ctx: Context, cluster: Cluster) -> None:
    """Two runs on one cluster would take each other's GPUs. Raises UsageError when one is still alive there."""
    for run in active_runs(ctx, cluster.name):
        states = {answer["state"] for answer in live(ctx, run).values()}
        if states & {"preparing", "running", "stopping"}:
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
