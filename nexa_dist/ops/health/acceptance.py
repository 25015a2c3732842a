"""The diagnosis at the end of a provision; and another machine, once, in the place of one that fails it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.context import Context
from nexa_dist.ops.health import diag, gate
from nexa_dist.ops.health.diag import Report
from nexa_dist.ops.ledger_file import open_periods
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.plan.health.fault import replaceable
from nexa_dist.run import agent_file
from nexa_dist.run.workspace import ClusterFolder

PASSED = "the same nodes passed it before"
AGAIN = "nexa provision mends or replaces it; nexa diag looks again"


def check(ctx: Context, folder: ClusterFolder, config: ClusterConfig, made: Cluster, **more: Any) -> Report:
    """A short diagnosis, kept as the newest. `more` is kept with it."""
    with ctx.phase("diag"), folder.journalled("check") as outcome:
        deep, before = diag.wanted_depth(folder, False), gate.newest(folder)
        passed = None if deep else _passed(made, before)
        running = active_runs(ctx, made.name)
        run, why_not = running[0].run_id if running else "", PASSED if passed else ""
        report = diag.examine(ctx, made, deep=deep, efa=config.efa, run=run, why_not=why_not)
        diag.keep(folder, report, **({"test": passed} if passed and not report.test else {}), **more)
        outcome |= {"ok": not report.failures, "causes": [f"{f.node}: {f.cause}" for f in report.failures]}
        for line in diag.lines(report):
            ctx.detail(line)
    return report


def _passed(made: Cluster, before: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The result of the group test that these same nodes passed with this same software; None when they did not."""
    if not before or not before.get("ok") or not (before.get("test") or {}).get("busbw_gb_s"):
        return None
    ids = {node.name: gate.identity(node) for node in made.nodes}
    same = (before["nodes"], before["agent"], before["env_hash"]) == (ids, agent_file.digest(), made.env_hash)
    return dict(before["test"]) if same else None


def refuse(report: Report) -> None:
    """Raises NexaError with every failure."""
    if report.failures:
        raise NexaError("the nodes are not fit:\n" + "\n".join(f.words for f in report.failures), hint=AGAIN)


def proven(
    ctx: Context,
    folder: ClusterFolder,
    config: ClusterConfig,
    made: Cluster,
    fresh: Collection[str],
    again: Callable[[Sequence[str]], Cluster],
    during: Callable[[Cluster], AbstractContextManager[None]],
) -> tuple[Cluster, Report]:
    """The cluster and its diagnosis, which may have failed. `again` ends the named nodes and makes others in their
    place, which is done once at most; `fresh` are the nodes that this provision made; `during` keeps nodes awake."""
    before = gate.newest(folder)
    with during(made):
        report = check(ctx, folder, config, made)
    bad = to_replace(report, gate.failed(before, made), fresh, idle=not active_runs(ctx, made.name))
    if not bad:
        return made, report
    began = ctx.now()
    machines = {period.id: period.node for period in open_periods(folder) if period.node in bad}
    named = "; ".join(f"{node} ({', '.join(causes)})" for node, causes in bad.items())
    ctx.say(f"▸ another machine in the place of {named}")
    with folder.journalled("replace", nodes=list(bad), causes=bad) as outcome:
        made = again(list(bad))
        with during(made):
            report = check(ctx, folder, config, made, replaced=bad)
        lost = losses(ctx, folder, made, machines, ctx.now() - began)
        outcome |= lost
    for ident, node in machines.items():
        folder.ledger("replaced", at=ctx.now(), node=node, id=ident, causes=bad[node], **lost)
    usd = "an unknown amount of" if lost["usd"] is None else f"{lost['usd']:.2f}"
    ctx.say(f"  {named} cost {lost['minutes']:.1f} min and {usd} USD")
    return made, report


def to_replace(report: Report, known: Mapping[str, Any], fresh: Collection[str], idle: bool) -> dict[str, list[str]]:
    """Causes by node, of the nodes that get another machine. One that was there before may hold the only checkpoint of
    a run, so it has to fail twice: `known` are those whose failure the user was told of before. What all nodes
    have is no machine's fault, and that one does not answer us may be our line's: it is no reason to end it."""
    found = {
        node: causes
        for node, causes in replaceable(report.findings).items()
        if node in fresh or causes != ["unreachable"]
    }
    if not report.cluster.traits.replaces or (len(found) == len(report.cluster.nodes) > 1):
        return {}
    return {node: causes for node, causes in found.items() if node in fresh or (idle and node in known)}


def losses(
    ctx: Context, folder: ClusterFolder, made: Cluster, machines: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """Minutes that the others waited, and USD: theirs, and all that the bad machines cost. None is unknown."""
    rows = [row for row in usage.known(ctx, folder).bill.nodes if row.id in machines]
    waiting = sum(node.price_usd_per_hour for node in made.nodes if node.name not in machines.values())
    usd = None if any(row.usd is None for row in rows) else sum(row.usd or 0.0 for row in rows)
    return {
        "minutes": round(seconds / 60, 2),
        "usd": None if usd is None else round(usd + waiting * seconds / 3600, 4),
    }
