"""The budget of a cluster and of a run: how long nodes may live for it, and the moment at which it stops a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from nexa_dist.errors import EXIT_BUDGET, NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops import guard, meter
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import active_runs, reach
from nexa_dist.ops.tend import Tender
from nexa_dist.plan import prices
from nexa_dist.plan.budget import GUARD, OF_CLUSTER, OF_RUN, REARM_S, Purse, tightest, too_small
from nexa_dist.plan.cost import cost_usd
from nexa_dist.plan.ledger import bill
from nexa_dist.run import files
from nexa_dist.run.mirror import sizes
from nexa_dist.run.nodes import Link, Ssh, on_all, session
from nexa_dist.run.workspace import ClusterFolder, RunFolder
from nexa_dist.shape import maybe, number, record

COUNT_S = 10.0
LOGS_GREW = 1_000_000
"""Bytes: a tenth of a cent."""
UNHEARD = 3
"""Renewals in a row that a node did not answer, before it is said."""


def of_cluster(
    folder: ClusterFolder, now_unix: float, usd_per_hour: float, fallback: float | None = None
) -> Purse | None:
    """What the ledger says of the cluster's budget (`fallback` before it has one); None without a budget.

    `usd_per_hour` stands in for nodes that are not there yet.
    """
    counted = bill(files.read_lines(folder.path / "ledger.jsonl"), now_unix)
    budget = counted.budget_usd or fallback
    return Purse(budget, counted.usd, max(counted.usd_per_hour, usd_per_hour)) if budget else None


def open_budget(folder: ClusterFolder, budget_usd: float | None, now_unix: float) -> None:
    """Writes the file's budget into the ledger, once for each value: a later extension stays in force."""
    lines = files.read_lines(folder.path / "ledger.jsonl")
    of_file = [line.get("usd") for line in lines if line.get("event") == "budget" and line.get("by") == "file"]
    if budget_usd is not None and (not of_file or of_file[-1] != budget_usd):
        folder.ledger("budget", at=now_unix, usd=budget_usd, by="file")


def hours_allowed(folder: ClusterFolder, now_unix: float, usd_per_hour: float, budget_usd: float | None) -> float:
    """For how many hours nodes that are made now may live, whatever prices do (within GUARD); endless without a budget.

    Raises NexaError, with the exit code for budgets, when nothing sensible is left of it.
    """
    purse = of_cluster(folder, now_unix, usd_per_hour, budget_usd)
    if purse is None:
        return float("inf")
    if why := too_small(purse.left_usd, purse.usd_per_hour):
        spent = f"; {purse.spent_usd:.2f} of {purse.budget_usd:.2f} USD are spent already" if purse.spent_usd else ""
        raise NexaError(f"{why}{spent}", hint="raise budget_usd, or: nexa budget extend", code=EXIT_BUDGET)
    return purse.seconds_left(GUARD) / 3600


def extend(ctx: Context, folder: ClusterFolder, usd: float) -> None:
    """Adds to the budget of a cluster: moves its nodes' own deadlines, and the end of runs that nobody follows (a
    controller tells its own). Raises UsageError when it has none."""
    now = ctx.now()
    purse = of_cluster(folder, now, 0.0)
    if purse is None:
        raise UsageError(f"cluster {folder.name} has no budget", hint="budget_usd in its file gives it one")
    folder.ledger("budget", at=now, usd=purse.budget_usd + usd, by="nexa budget extend")
    cluster, richer = folder.load(), replace(purse, budget_usd=purse.budget_usd + usd)
    unfollowed = [run for run in active_runs(ctx, folder.name) if not run.supervised]
    with session(ctx.runner, cluster) as ssh:
        clocks = partial(rearm, guard.doors(ssh), richer, clock_of(folder, cluster), now)
        for tell in (clocks, *(partial(_allow, ctx, cluster, run, ssh) for run in unfollowed)):
            try:
                tell()
            except NexaError as error:
                ctx.say(f"warning: something still ends when the old budget says so: {error}")


def _allow(ctx: Context, cluster: Cluster, run: RunFolder, ssh: Ssh) -> None:
    """Tells the agents of a run that nobody follows how long its money lasts now."""
    from nexa_dist.config.load import recorded_train  # pydantic, which no other way through here needs

    record = run.load()
    config = recorded_train(record["config"], run.run_id)
    meter = Meter(ctx, cluster, config.budget_usd, record["attempts"][0]["started_unix"], ctx.say, run)
    meter.links, silent = reach(ssh, [node for node in cluster.nodes if node.name in record["nodes"]])
    for name, why in silent.items():
        ctx.say(f"warning: {name} ends {run.run_id} when the old budget says so: {why}")
    meter.allow()


def refuse_a_run(ctx: Context, cluster: Cluster, run_budget_usd: float | None) -> None:
    """Raises NexaError, before anything is started, when a budget would end the run as soon as it began, UsageError
    when it never would."""
    if run_budget_usd and cluster.usd_per_hour <= 0:
        raise UsageError(
            f"budget_usd means nothing on cluster {cluster.name}, whose nodes have no price",
            hint="give price_usd_per_hour in the cluster's file (to each host of your own)",
        )
    made = Meter(ctx, cluster, run_budget_usd, ctx.now(), ctx.say)
    if made.out():
        purse = tightest(made.purses())
        assert purse is not None
        raise NexaError(
            f"{purse.words()}, and at {purse.usd_per_hour:.2f} USD/h the rest is needed to stop in order",
            hint="raise budget_usd of train.yaml" if purse.what == OF_RUN else "nexa budget extend USD adds to it",
            code=EXIT_BUDGET,
        )


@dataclass(frozen=True)
class Clock:
    """What a controller has to do with the clocks by which the nodes of a cluster end themselves."""

    every_s: float = REARM_S
    leased: bool = False
    moved_by_money: bool = False
    ends_unix: float = float("inf")
    """By max_hours, whatever the budget says."""
    max_s: float | None = None


CLOCKED = record({}, dict.fromkeys(("lease_minutes", "max_hours", "budget_usd"), maybe(number(0, 1e9))))
"""What a config.json may say of clocks."""


def clock_of(folder: ClusterFolder, cluster: Cluster) -> Clock:
    """Nodes of your own have no such clock."""
    if cluster.provider == "static" or not (folder.path / "config.json").exists():
        return Clock()
    config = files.read_shape(folder.path / "config.json", CLOCKED)
    lease_s = (config.get("lease_minutes") or 0) * 60
    hours = config.get("max_hours")
    return Clock(
        every_s=guard.renew_every_s(lease_s) if lease_s else REARM_S,
        leased=bool(lease_s),
        moved_by_money=bool(config.get("budget_usd")) and bool(hours),
        ends_unix=cluster.created_unix + hours * 3600 if hours else float("inf"),
        max_s=hours * 3600 if hours else None,
    )


def rearm(links: Sequence[Link], purse: Purse | None, clock: Clock, now_unix: float) -> None:
    """Moves the nodes' own deadline to where the money really ends, never beyond max_hours."""
    due = purse.deadline_unix(now_unix) if purse else None
    if due is not None:
        guard.rearm(links, min(due, clock.ends_unix), clock.max_s)


class Meter:
    """Counts what a run's nodes cost while it trains. One for each supervisor; `look` is called often and is cheap.

    Between `start` and `close` a thread renews the nodes' lease, asks the cloud for prices, and moves the nodes' own
    deadlines, and the run's, to where the money really ends: also while a lost node is made anew.
    """

    def __init__(
        self, ctx: Context, cluster: Cluster, run_budget_usd: float | None, since_unix: float,
        say: Callable[[str], None], run: RunFolder | None = None,
    ) -> None:  # fmt: skip
        self.ctx, self.cluster, self.say = ctx, cluster, say
        self.run_budget_usd, self.since_unix, self.run = run_budget_usd, since_unix, run
        folder = ctx.workspace.cluster(cluster.name)
        self.folder = folder if (folder.path / "ledger.jsonl").exists() else None
        self.clock = clock_of(folder, cluster)
        self.links: Sequence[Link] = ()
        self.ahead_s = 0.0
        """By which the cloud's clock, which bills, is ahead of ours."""
        self._said: dict[str, float] = {}
        self._counted = self._asked = float("-inf")
        self._unheard = self._sent = 0
        self._tender = Tender(self.tend, self.clock.every_s)

    def start(self) -> None:
        if self.cluster.provider != "static" or self.purses():
            self._tender.start()

    def close(self) -> None:
        self._tender.close()
        self._count_logs(least=1)

    def _count_logs(self, least: int = LOGS_GREW) -> None:
        """What the nodes sent here is billed as traffic: the copy of the logs has its size."""
        if not (self.run and self.folder and self.cluster.region):
            return
        sent = sum(sizes(self.run.logs).values())
        if sent - self._sent >= least:
            self._sent = sent
            usd = prices.egress_usd_per_gb(self.cluster.region)
            self.folder.ledger("egress", at=self.ctx.now(), run=self.run.run_id, bytes=sent, usd_per_gb=usd)

    def purses(self) -> list[Purse]:
        """Every budget that holds for the run, as of now."""
        now, found = self.ctx.now() + self.ahead_s, list[Purse]()
        if self.folder and (purse := of_cluster(self.folder, now, self.cluster.usd_per_hour)):
            found.append(purse)
        if self.run_budget_usd:
            rate = found[0].usd_per_hour if found else self.cluster.usd_per_hour
            spent = cost_usd(self.cluster, self.ctx.now() - self.since_unix)
            found.append(Purse(self.run_budget_usd, spent, rate, OF_RUN))
        return found

    def look(self) -> str:
        """Why the run has to stop now; empty while there is money. Says what is to be said."""
        while self._tender.said:
            self.say(self._tender.said.popleft())
        now = self.ctx.now()
        if now - self._counted < COUNT_S:
            return ""
        self._counted = now
        for purse in self.purses():
            if warning := purse.warning(self._said.get(purse.what, 0.0)):
                self._said[purse.what], words = warning
                self.say(words)
        return self.out()

    def out(self) -> str:
        """Which budget is used up, in words; empty while there is money."""
        purse = tightest(self.purses())
        return purse.words() if purse and purse.due() else ""

    def tend(self) -> str:
        """One round of what the thread does. Answers what is to be said."""
        links, now = tuple(self.links), self.ctx.now()
        if links:  # before all that may fail: the lease is what cannot wait
            self._unheard = self._unheard + 1 if guard.renew(links).silent else 0
        if self._unheard == UNHEARD and self.clock.leased:
            return "warning: the lease of a node has not been renewed for a while: it may end itself"
        if now - self._asked < REARM_S:
            return ""
        self._asked = now
        self._count_logs()
        if self.folder:
            self.ahead_s = meter.refresh(self.ctx, self.folder).ahead_s
        if links and self.clock.moved_by_money:
            rearm(links, next((p for p in self.purses() if p.what == OF_CLUSTER), None), self.clock, now)
        self.allow()
        return ""

    def allow(self) -> None:
        """Tells the run's agents how long its money lasts. Raises NexaError with every node that was not told."""
        purse = tightest(self.purses())
        if not (self.run and self.links and purse) or purse.usd_per_hour <= 0:
            return
        nodes = self.run.load()["nodes"]
        # The prices of your own hosts are yours: nobody raises them.
        message = {"seconds": purse.run_seconds(GUARD if self.cluster.provider == "aws" else 1.0)}
        on_all(
            self.links,
            lambda link: link.call(
                "allow", nodes[link.node.name]["run_dir"], message=message, timeout_s=guard.TIMEOUT_S
            ),
        )
