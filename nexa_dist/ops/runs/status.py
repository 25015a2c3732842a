"""Status of a run's agents and of a cluster's nodes, asked now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.node.protocol import AT_WORK
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.table import machine_says
from nexa_dist.run import files, trust
from nexa_dist.run.ssh.connections import Link, by_node, on_all, reach, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.straggler import straggler


def live(ctx: Context, run: RunFolder) -> dict[str, Any]:
    """The agents' own answers, by node; `unreachable` where there is none."""
    record = run.load()
    with session(ctx.runner, record.cluster) as ssh:
        links, silent = reach(ssh, [node for node in record.cluster.nodes if node.name in record.nodes])
        known = by_node(links, lambda link: _status(link, record.run_dir(link.name)))
    return {**known, **{name: {"state": "unreachable", "reason": why} for name, why in silent.items()}}


def _status(link: Link, run_dir: str) -> dict[str, Any]:
    try:
        answer = link.call("status", run_dir)
    except wire.Faulty as error:
        return {"state": "faulty", "reason": str(error)}
    except NexaError as error:
        return {"state": "unreachable", "reason": str(error)}
    return {**answer, "processes": len(answer.get("processes", ()))}


def progress_of(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One row of progress from the agents' `status` answers, by node: the step that every rank has done, and what
    rank 0 tells. `lag_steps`: how far the durable store is behind the newest checkpoint. `own_s`: seconds a step of
    each rank's own work. None where nobody knows."""
    told = [found for answer in answers.values() if isinstance(found := answer.get("progress"), dict)]
    steps = {rank: step for found in told for rank, step in (found.get("steps") or {}).items() if step is not None}
    first = next((found for found in told if "0" in (found.get("steps") or {})), told[0] if told else {})
    owns = {name: (answer.get("progress") or {}).get("own_s") or {} for name, answer in answers.items()}
    own_s = {int(rank): seconds for own in owns.values() for rank, seconds in own.items()}
    slow = straggler(own_s)
    at = next((name for name, own in owns.items() if slow and str(slow.rank) in own), "")
    saved, durable = first.get("saved"), first.get("durable")
    return {
        "step": min(steps.values(), default=None),
        **{key: first.get(key) for key in ("of", "loss", "saved", "durable")},
        "lag_steps": None if saved is None or durable is None else saved - durable,
        "own_s": {str(rank): own_s[rank] for rank in sorted(own_s)} or None,
        "straggler": replace(slow, node=at).told if slow else None,
    }


def refuse_busy(ctx: Context, cluster: Cluster) -> None:
    """Two runs on one node would take each other's GPUs. Raises UsageError when one is still alive on a node of this
    cluster, which may be a part of it."""
    names = {node.name for node in cluster.nodes}
    for run in active_runs(ctx, cluster.name):
        if names.isdisjoint(node.name for node in run.load().cluster.nodes):
            continue
        states = {answer["state"] for answer in live(ctx, run).values()}
        if states & {*AT_WORK} or run.supervised:
            raise UsageError(
                f"cluster {cluster.name} is busy with {run.run_id}", hint=f"nexa attach {run.run_id}, or nexa stop it"
            )
        ctx.say(f"warning: {run.run_id} has ended, but nobody wrote its manifest: nexa attach {run.run_id} does")


@contextlib.contextmanager
def launching(ctx: Context, cluster: Cluster) -> Iterator[None]:
    """Refuses a cluster that is busy, and holds its nodes while a run is launched there: of two launches at the same
    moment both would find them free."""
    if not ctx.dry:
        trust.claim(ctx.workspace.root)  # a folder `.nexa` that nobody has claimed is taken for somebody else's
    with contextlib.ExitStack() as held:
        folder = ctx.workspace.cluster(cluster.name).path.parents[1] / "launching"
        for name in () if ctx.dry else sorted(node.name for node in cluster.nodes):
            try:
                held.enter_context(files.locked(folder / f"{cluster.name}.{name}", "run"))
            except NexaError as error:
                who = str(error).partition(": ")[2]
                raise UsageError(
                    f"cluster {cluster.name} is busy with the launch of a run on {name}: {who}",
                    hint="nexa status shows it once it runs; until then that command can be interrupted",
                ) from None
        refuse_busy(ctx, cluster)
        yield


def cluster_nodes(ctx: Context, cluster: Cluster) -> list[dict[str, Any]]:
    """One row per node of `nexa status`: whether it answers, over its pinned key."""

    def ask(node: Node) -> dict[str, Any]:
        row = {"node": node.name, "address": f"{node.address}:{node.port}", "ranks": node.gpus}
        try:
            got = ssh.run(node, ("true",), timeout_s=15)
            return {**row, "state": "up" if got.code == 0 else f"exit {got.code}"}
        except NexaError as error:
            return {**row, "state": "unreachable", "why": str(error), **_machine(ctx, cluster, node)}

    with session(ctx.runner, cluster) as ssh:
        return on_all(cluster.nodes, ask)


def _machine(ctx: Context, cluster: Cluster, node: Node) -> dict[str, str]:
    """Word of a scheduler for a node that does not answer; nothing where there is no scheduler, or it does not
    answer."""
    with contextlib.suppress(NexaError):
        if cluster.traits.scheduled:
            return {"machine": machine_says(ctx, cluster, node)[1]}
    return {}
