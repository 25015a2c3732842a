"""The budget of a cluster: how long nodes may live for it, and the deadlines that hold them to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nexa_dist.errors import EXIT_BUDGET, NexaError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import lease
from nexa_dist.plan.money.bill import bill
from nexa_dist.plan.money.budget import GUARD, REARM_S, Budget, too_small
from nexa_dist.run import files
from nexa_dist.run.ssh.connections import Link
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.shape import maybe, number, record

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig


def of_cluster(
    folder: ClusterFolder, now_unix: float, usd_per_hour: float, fallback: float | None = None
) -> Budget | None:
    """The budget of a cluster from its ledger (`fallback` before it has one); None without a budget.

    `usd_per_hour` stands in for nodes that are not there yet.
    """
    counted = bill(files.read_lines(folder.path / "ledger.jsonl"), now_unix)
    usd = counted.budget_usd or fallback
    return Budget(usd, counted.usd, max(counted.usd_per_hour, usd_per_hour)) if usd else None


def open_budget(folder: ClusterFolder, budget_usd: float | None, now_unix: float) -> None:
    """Writes the file's budget into the ledger, once for each value: a later extension stays in force."""
    lines = files.read_lines(folder.path / "ledger.jsonl")
    of_file = [line.get("usd") for line in lines if line.get("event") == "budget" and line.get("by") == "file"]
    if budget_usd is not None and (not of_file or of_file[-1] != budget_usd):
        folder.ledger("budget", at=now_unix, usd=budget_usd, by="file")


def hours_allowed(folder: ClusterFolder, now_unix: float, usd_per_hour: float, budget_usd: float | None) -> float:
    """Hours that nodes made now may live, whatever prices do (within GUARD); endless without a budget.

    Raises NexaError, with the exit code for budgets, when nothing sensible is left of it.
    """
    budget = of_cluster(folder, now_unix, usd_per_hour, budget_usd)
    if budget is None:
        return float("inf")
    if why := too_small(budget.left_usd, budget.usd_per_hour):
        spent = f"; {budget.spent_usd:.2f} of {budget.budget_usd:.2f} USD are spent already" if budget.spent_usd else ""
        raise NexaError(f"{why}{spent}", hint="raise budget_usd, or: nexa budget extend", code=EXIT_BUDGET)
    return budget.seconds_left(GUARD) / 3600


def allowance(ctx: Context, folder: ClusterFolder, config: ClusterConfig) -> Callable[[float], float]:
    """`hours_allowed` of this cluster and file, by USD an hour."""
    return lambda usd_per_hour: hours_allowed(folder, ctx.now(), usd_per_hour, config.budget_usd)


@dataclass(frozen=True)
class Clock:
    """Settings by which a controller serves the nodes' own clocks: lease interval, deadline, cap."""

    every_s: float = REARM_S
    leased: bool = False
    moved_by_money: bool = False
    ends_unix: float = float("inf")
    """Deadline by max_hours, whatever the budget says."""
    max_s: float | None = None


CLOCKED = record({}, dict.fromkeys(("lease_minutes", "max_hours", "budget_usd"), maybe(number(0, 1e9))))
"""Shape of the keys of config.json that set clocks."""


def clock_of(folder: ClusterFolder, cluster: Cluster) -> Clock:
    """The clocks of a cluster, from its config.json; hosts of the user's own have none."""
    if not cluster.traits.clock or not (folder.path / "config.json").exists():
        return Clock()
    config = files.read_shape(folder.path / "config.json", CLOCKED)
    lease_s = (config.get("lease_minutes") or 0) * 60
    hours = config.get("max_hours")
    return Clock(
        every_s=lease.renew_every_s(lease_s) if lease_s else REARM_S,
        leased=bool(lease_s),
        moved_by_money=bool(config.get("budget_usd")) and bool(hours),
        ends_unix=cluster.created_unix + hours * 3600 if hours else float("inf"),
        max_s=hours * 3600 if hours else None,
    )


def rearm(links: Sequence[Link], budget: Budget | None, clock: Clock, now_unix: float) -> None:
    """Moves the nodes' own deadline to where the money really ends, never beyond max_hours."""
    due = budget.deadline_unix(now_unix) if budget else None
    if due is not None:
        lease.rearm(links, min(due, clock.ends_unix), clock.max_s)
