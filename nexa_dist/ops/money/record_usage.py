"""Keeps the ledger of a cluster: what the cloud itself says of its instances and prices, and this machine's clock for
nodes that are in no cloud.

Lines are only added, each in one write, so a run, a teardown and `nexa cost` may do so at the same time; what is there
already is not added again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.ledger_file import open_periods, read, stop
from nexa_dist.ops.providers.local_nodes import answers, made_nodes
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.plan.money import ledger
from nexa_dist.plan.money.bill import Bill, bill
from nexa_dist.plan.money.ledger import Phase
from nexa_dist.run.workspace import ClusterFolder

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig

__all__ = ["Reading", "advance", "begin_own", "end_all", "known", "read", "refresh"]

_BEFORE: tuple[Phase | None, ...] = (None, "booting", "bootstrapping", "idle")


@dataclass(frozen=True)
class Reading:
    """The ledger as it is, and the moment to which it holds, by the cloud's clock where there is one."""

    events: list[dict[str, Any]]
    now_unix: float
    ahead_s: float = 0.0
    """How far that clock is ahead of ours."""

    @property
    def bill(self) -> Bill:
        return bill(self.events, self.now_unix)


def refresh(ctx: Context, folder: ClusterFolder) -> Reading:
    """Asks the cloud, adds what it tells to the ledger, and reads it. Raises NexaError when it does not answer."""
    scope = known_scope(folder)
    if scope is None:
        _record_own_ends(ctx, folder)
        return Reading(read(folder.path), ctx.now())
    from nexa_dist.ops.providers.aws import record_usage as aws_record_usage
    from nexa_dist.run.aws import tagged

    shown, told = tagged.machines(scope.region, scope.owner, scope.cluster)
    things = [thing for thing in shown if thing.tags.get(tagged.WORKSPACE) == scope.workspace]
    now = ctx.now() if told is None else told
    aws_record_usage.record(ctx, folder, scope, things, now)
    return Reading(read(folder.path), now, now - ctx.now())


def begin_own(ctx: Context, folder: ClusterFolder, config: ClusterConfig, lost: Sequence[str]) -> None:
    """The meter of nodes that are in no cloud starts. Those in `lost` end, and begin anew."""
    _record_own_ends(ctx, folder)
    now, names = ctx.now(), config.node_names
    own = {name: host.price_usd_per_hour for name, host in zip(names, config.cluster, strict=False)}
    running = {period.node: period for period in open_periods(folder)}
    for name, period in running.items():
        if name in lost or name not in names:
            stop(folder, period, now, "lost" if name in lost else "not in the file any more", "clock")
    for name in names:
        if name not in running or name in lost:
            price = own.get(name, config.price_usd_per_hour or 0.0)
            folder.ledger(
                "node_start", at=now, node=name, id=f"{name}@{now:.3f}", offer=config.provider,
                usd_per_hour=price, disk_gb=0, public_ip=False, source="clock",
            )  # fmt: skip


def known(ctx: Context, folder: ClusterFolder) -> Reading:
    """The ledger as it is, without asking anybody."""
    return Reading(read(folder.path), ctx.now())


def _record_own_ends(ctx: Context, folder: ClusterFolder) -> None:
    """Nodes on this machine that were up and are off: by their own deadline if that is past, else by now."""
    try:
        where = {row["name"]: (row["address"], row["port"]) for row in made_nodes(folder)}
    except (NexaError, KeyError):  # a damaged file: teardown ends them
        return
    made = {change.id for change in ledger.changes(read(folder.path)) if change.phase == "bootstrapping"}
    for period in open_periods(folder):
        if period.id in made and period.node in where and not answers(folder, period.node, *where[period.node]):
            due = _number(folder.path / "nodes" / period.node / "due" / "acts_unix")
            at = due if due and period.start_unix <= due <= ctx.now() else ctx.now()
            stop(folder, period, at, "it is off", "clock")


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def end_all(ctx: Context, folder: ClusterFolder, why: str) -> None:
    """All that is on ends now."""
    for period in open_periods(folder):
        stop(folder, period, ctx.now(), why, "clock")


def advance(ctx: Context, folder: ClusterFolder, phase: Phase, ahead_s: float = 0.0) -> None:
    """Machines that have not come as far yet enter `phase`: booting with their start, the others now."""
    events = read(folder.path)
    changes = ledger.changes(events)
    for period in ledger.periods(events):
        at = [change.phase for change in changes if change.id == period.id]
        now_in = max((known for known in at if known in _BEFORE), key=_BEFORE.index, default=None)
        if period.stop_unix is None and _BEFORE.index(now_in) < _BEFORE.index(phase):
            when = period.start_unix if phase == "booting" else max(period.start_unix, ctx.now() + ahead_s)
            folder.ledger("phase", at=when, node=period.node, id=period.id, phase=phase, run=None, attempt=None)
