"""Meter of a run's cost while it trains, and the thread that renews the nodes' lease and moves their deadlines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from nexa_dist.errors import EXIT_BUDGET, NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import lease
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.money.budget import clock_of, of_cluster, rearm
from nexa_dist.plan.aws import prices
from nexa_dist.plan.money.budget import GUARD, OF_CLUSTER, OF_RUN, REARM_S, Budget, tightest
from nexa_dist.plan.money.cost import cost_usd
from nexa_dist.run.logs.mirror import sizes
from nexa_dist.run.periodic import PeriodicTask
from nexa_dist.run.ssh.connections import Link, Ssh, on_all, reach, session
from nexa_dist.run.workspace import ClusterFolder, RunFolder

COUNT_S = 10.0
LOGS_GREW = 1_000_000
"""Bytes of new logs after which their traffic is written down: 0.00009 USD at 0.09 USD/GB."""
UNHEARD = 3
"""Failed lease renewals in a row, before a warning."""


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
        self.whole = folder.load() if folder.json.exists() else cluster
        """The cluster, of which the run may have a part."""
        self.links: Sequence[Link] = ()
        self.warned: Callable[[Budget, float, str], None] = lambda *_: None
        """Told of each warning, beside `say`."""
        self.ahead_s = 0.0
        """Seconds by which the cloud's clock, which bills, is ahead of ours."""
        self._said: dict[str, float] = {}
        self._counted = self._asked = float("-inf")
        self._unheard = self._sent = 0
        self._task = PeriodicTask(self.round, self.clock.every_s)

    def start(self) -> None:
        if self.cluster.traits.clock or self.budgets():
            self._task.start()

    def close(self) -> None:
        self._task.close()
        self._count_logs(least=1)

    def _count_logs(self, least: int = LOGS_GREW) -> None:
        """Count the logs that the nodes sent here, which are billed as traffic: the copy of the logs has its size."""
        if not (self.run and self.folder and self.cluster.region):
            return
        sent = sum(sizes(self.run.logs).values())
        if sent - self._sent >= least:
            self._sent = sent
            usd = prices.book().egress.usd.get(self.cluster.region)
            self.folder.ledger("egress", at=self.ctx.now(), run=self.run.run_id, bytes=sent, usd_per_gb=usd)

    def budgets(self) -> list[Budget]:
        """Every budget that holds for the run, as of now."""
        now, found = self.ctx.now() + self.ahead_s, list[Budget]()
        if self.folder and (budget := of_cluster(self.folder, now, self.cluster.usd_per_hour)):
            found.append(budget)
        if self.run_budget_usd:
            part = self.cluster.usd_per_hour / self.whole.usd_per_hour if self.whole.usd_per_hour else 1.0
            rate = found[0].usd_per_hour * part if found else self.cluster.usd_per_hour
            spent = cost_usd(self.cluster, self.ctx.now() - self.since_unix)
            found.append(Budget(self.run_budget_usd, spent, rate, OF_RUN))
        return found

    def look(self) -> str:
        """Why the run has to stop now; empty while there is money. Says what is to be said."""
        while self._task.said:
            self.say(self._task.said.popleft())
        now = self.ctx.now()
        if now - self._counted < COUNT_S:
            return ""
        self._counted = now
        for budget in self.budgets():
            if warning := budget.warning(self._said.get(budget.what, 0.0)):
                self._said[budget.what], words = warning
                self.say(words)
                self.warned(budget, self._said[budget.what], words)
        return self.out()

    def out(self) -> str:
        """The budget that is used up, in words; empty while there is money."""
        budget = tightest(self.budgets())
        return budget.words() if budget and budget.due() else ""

    def round(self) -> str:
        """Make one round of the thread: renews the lease, asks for prices, moves deadlines. Answers a warning or
        nothing."""
        links, now = tuple(self.links), self.ctx.now()
        if links:  # before all that may fail: the lease is what cannot wait
            self._unheard = self._unheard + 1 if lease.renew(links).silent else 0
        others = self._others()
        if others:  # a node that is not in use ends itself when it has been idle: it need not answer
            lease.renew(others)
        if self._unheard == UNHEARD and self.clock.leased:
            return "warning: the lease of a node has not been renewed for a while: it may end itself"
        if now - self._asked < REARM_S:
            return ""
        self._asked = now
        self._count_logs()
        if self.folder:
            self.ahead_s = usage.refresh(self.ctx, self.folder).ahead_s
        if links and self.clock.moved_by_money:
            money = next((p for p in self.budgets() if p.what == OF_CLUSTER), None)
            rearm(links, money, self.clock, now)
            if others:
                with contextlib.suppress(NexaError):
                    rearm(others, money, self.clock, now)
        self.allow()
        return ""

    def _others(self) -> list[Link]:
        """Doors to the nodes of the cluster that the run does not use: they cost too, and live by the same lease."""
        mine = {node.name for node in self.cluster.nodes}
        return [Link(self.links[0].ssh, node, "") for node in self.whole.nodes if self.links and node.name not in mine]

    def allow(self) -> None:
        """Tells the run's agents how long its money lasts. Raises NexaError with every node that was not told."""
        budget = tightest(self.budgets())
        if not (self.run and self.links and budget) or budget.usd_per_hour <= 0:
            return
        record = self.run.load()
        # The prices of your own hosts are yours: nobody raises them.
        message = {"seconds": budget.run_seconds(GUARD if self.cluster.traits.priced else 1.0)}
        on_all(
            self.links,
            lambda link: link.call("allow", record.run_dir(link.node.name), message=message, timeout_s=lease.TIMEOUT_S),
        )


def extend(ctx: Context, folder: ClusterFolder, usd: float) -> None:
    """Adds to the budget of a cluster: moves its nodes' own deadlines, and the end of runs that nobody follows (a
    controller tells its own). Raises UsageError when it has none."""
    now = ctx.now()
    budget = of_cluster(folder, now, 0.0)
    if budget is None:
        raise UsageError(f"cluster {folder.name} has no budget", hint="budget_usd in its file gives it one")
    folder.ledger("budget", at=now, usd=budget.budget_usd + usd, by="nexa budget extend")
    cluster, richer = folder.load(), replace(budget, budget_usd=budget.budget_usd + usd)
    unfollowed = [run for run in active_runs(ctx, folder.name) if not run.supervised]
    with session(ctx.runner, cluster) as ssh:
        clocks = [partial(rearm, lease.doors(ssh), richer, clock_of(folder, cluster), now)] * cluster.traits.clock
        for tell in (*clocks, *(partial(_allow, ctx, cluster, run, ssh) for run in unfollowed)):
            try:
                tell()
            except NexaError as error:
                ctx.say(f"warning: something still ends when the old budget says so: {error}")


def _allow(ctx: Context, cluster: Cluster, run: RunFolder, ssh: Ssh) -> None:
    """Tells the agents of a run that nobody follows how long its money lasts now."""
    from nexa_dist.config.load import recorded_train  # pydantic, which no other way through here needs

    record = run.load()
    config = recorded_train(record.config, run.run_id)
    meter = Meter(ctx, cluster, config.budget_usd, record.attempts[0].started_unix, ctx.say, run)
    meter.links, silent = reach(ssh, [node for node in cluster.nodes if node.name in record.nodes])
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
        budget = tightest(made.budgets())
        assert budget is not None
        raise NexaError(
            f"{budget.words()}, and at {budget.usd_per_hour:.2f} USD/h the rest is needed to stop in order",
            hint="raise budget_usd of train.yaml" if budget.what == OF_RUN else "nexa budget extend USD adds to it",
            code=EXIT_BUDGET,
        )
