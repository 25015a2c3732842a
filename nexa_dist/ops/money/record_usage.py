"""Keeps the ledger of a cluster: what the cloud itself says of its instances and prices, and this machine's clock for
nodes that are in no cloud.

Lines are only added, each in one write, so a run, a teardown and `nexa cost` may do so at the same time; what is there
already is not added again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nexa_dist.ops.context import Context
from nexa_dist.ops.ledger_file import open_periods, read, stop
from nexa_dist.ops.providers.table import of_folder, usage
from nexa_dist.plan.money import ledger
from nexa_dist.plan.money.bill import Bill, bill
from nexa_dist.plan.money.ledger import Phase
from nexa_dist.run.workspace import ClusterFolder

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig
    from nexa_dist.model import Cluster

__all__ = ["Reading", "advance", "begin_own", "end_all", "known", "read", "refresh"]

_BEFORE: tuple[Phase | None, ...] = (None, "booting", "bootstrapping", "idle")


@dataclass(frozen=True)
class Reading:
    """The ledger as it is, and the moment to which it holds, by the cloud's clock where there is one."""

    events: list[dict[str, Any]]
    now_unix: float
    ahead_s: float = 0.0
    """Seconds by which that clock is ahead of ours."""

    @property
    def bill(self) -> Bill:
        return bill(self.events, self.now_unix)


def refresh(ctx: Context, folder: ClusterFolder) -> Reading:
    """Asks the cloud, adds what it tells to the ledger, and reads it. Raises NexaError when it does not answer."""
    now = usage(of_folder(folder), ctx, folder)
    return Reading(read(folder.path), now, now - ctx.now())


def begin_own(ctx: Context, folder: ClusterFolder, config: ClusterConfig, lost: Sequence[str]) -> None:
    """Starts the usage of nodes that are in no cloud. Those in `lost` end, and begin anew."""
    usage(config.provider, ctx, folder)
    now, names = ctx.now(), config.node_names
    own = {name: host.price_usd_per_hour for name, host in zip(names, config.cluster, strict=False)}
    running = {period.node: period for period in open_periods(folder)}
    for name, period in running.items():
        if name in lost or name not in names:
            stop(folder, period, now, "lost" if name in lost else "not in the file any more", "clock")
    for name in names:
        if name not in running or name in lost:
            # What others rent out for nobody knows what is not free.
            price = own.get(name, config.node_usd_per_hour or (None if config.traits.rents else 0.0))
            folder.ledger(
                "node_start", at=now, node=name, id=f"{name}@{now:.3f}", offer=config.provider,
                usd_per_hour=price, disk_gb=0, public_ip=False, source="clock",
            )  # fmt: skip


def priced(folder: ClusterFolder, made: Cluster) -> None:
    """The start of each machine once more, where its price was not known before it was made."""
    prices = {node.name: node.price_usd_per_hour for node in made.nodes}
    for period in open_periods(folder):
        if period.usd_per_hour is None and period.node in prices:
            folder.ledger(
                "node_start", at=period.start_unix, node=period.node, id=period.id, offer=period.offer,
                usd_per_hour=prices[period.node], disk_gb=0, public_ip=False, source="clock",
            )  # fmt: skip


def known(ctx: Context, folder: ClusterFolder) -> Reading:
    """The ledger as it is, without asking anybody."""
    return Reading(read(folder.path), ctx.now())


def end_all(ctx: Context, folder: ClusterFolder, why: str) -> None:
    """Writes the end of every node that is still on."""
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
