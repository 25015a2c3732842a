"""End policy of the nodes when a run has ended: kept, given a last deadline, or given back, as the file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nexa_dist.model import Cluster
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import budget, lease
from nexa_dist.ops.queue import Queue
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.plan.money.budget import OF_CLUSTER, OF_RUN
from nexa_dist.run import files
from nexa_dist.run.ssh.connections import session


@dataclass(frozen=True)
class EndPolicy:
    """`minutes` is how long nodes are kept that end by themselves then. `why` is said."""

    action: Literal["keep", "teardown", "deadline"]
    why: str = ""
    minutes: float = 0.0


def fate(outcome: Outcome, config: dict[str, Any], bucket: str) -> EndPolicy:
    """Pure. `config` is the cluster's as it was provisioned; empty for hosts of your own."""
    if not config:
        return EndPolicy("keep")
    if outcome.end.kind == "budget" and config.get("on_budget", "teardown") == "teardown":
        if outcome.saved is not None and not bucket and outcome.end.words.startswith(OF_RUN):
            return EndPolicy("keep", "no bucket has the checkpoint of step "
                        f"{outcome.saved}, so the nodes are kept until their own deadline")  # fmt: skip
        return EndPolicy("teardown", "on_budget: teardown")
    wish = str(config.get("on_failure", "keep"))
    if outcome.state != "failed" or wish == "keep":
        return EndPolicy("keep")
    if wish == "teardown":
        return EndPolicy("teardown", "on_failure: teardown")
    return EndPolicy("deadline", f"on_failure: {wish}", float(wish.removeprefix("keep ").removesuffix("m")))


def carry_out(ctx: Context, cluster: Cluster, outcome: Outcome) -> EndPolicy:
    """Does what the file says. Raises NexaError, StillRunning when nodes could not be proven gone."""
    folder = ctx.workspace.cluster(cluster.name)
    config = files.read_object(folder.path / "config.json") if (folder.path / "config.json").exists() else {}
    found = fate(outcome, config if cluster.traits.makes else {}, cluster.bucket)
    if found.action != "keep" and not outcome.end.words.startswith(OF_CLUSTER):
        others = ", ".join(run.run_id for run in active_runs(ctx, cluster.name))
        wanted = others or "what waits in the queue" * Queue(folder).wants_nodes()
        found = EndPolicy("keep", f"the nodes are kept for {wanted} ({found.why})") if wanted else found
    if found.action == "teardown":
        from nexa_dist.ops.cluster.teardown import teardown
        from nexa_dist.ops.providers.scope_file import known_scope
        from nexa_dist.ops.runs.stop import stop

        ctx.say(f"giving the nodes back ({found.why})")
        receipt = teardown(ctx, folder, known_scope(folder), stop)
        usd = receipt["cost_usd"]
        ctx.say(f"✓ cluster {cluster.name} is gone" + ("" if usd is None else f"; it has cost {usd:.2f} USD"))
    elif found.action == "deadline":
        clock = budget.clock_of(folder, cluster)
        due = min(ctx.now() + found.minutes * 60, clock.ends_unix)
        with session(ctx.runner, folder.load() if folder.json.exists() else cluster) as ssh:
            lease.rearm(lease.doors(ssh), due)
        ctx.say(f"the nodes are kept for {found.minutes:.0f} min ({found.why}) and end by themselves then")
    elif found.why:
        ctx.say(found.why)
    return found
