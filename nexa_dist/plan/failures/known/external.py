"""Ends that no log tells: they come from outside, or from what the nodes' agents saw."""

from __future__ import annotations

from nexa_dist.node.protocol import Reason
from nexa_dist.plan.failures.known.signature import Signature

ENDS = (
    Signature(
        "spot_notice",
        "event notice",
        "the cloud takes the node back: notice to {detail}",
        "nothing to mend: nexa replaces the node and goes on from the checkpoint; with many notices use another"
        " instance type, zone or market: on_demand",
        reasons=(Reason.NOTICE,),
    ),
    Signature(
        "scheduler_notice",
        "reason notice of the scheduler",
        "Slurm wanted the nodes back: a job of a higher partition, the time limit, or scancel",
        "nothing to mend after a preemption or a time limit: the job is in the queue again, and goes on from the"
        " checkpoint; after scancel submit it again",
        reasons=(Reason.SCHEDULER,),
    ),
    Signature(
        "node_gone",
        "no event of the node any more, and no end",
        "the node stopped answering: {detail}",
        "nexa status; nexa replaces it when the provider can. Without a notice: hardware, network, or a full stop of"
        " the machine",
    ),
    Signature(
        "hang",
        "event hang; no step within hang_timeout_s",
        "no step for {detail}",
        "look at where it stands; when steps only take that long, raise hang_timeout_s in train.yaml",
        reasons=(Reason.HANG,),
    ),
    Signature(
        "deadline",
        "reason deadline",
        "time was up: max_hours, or a node's own clock (deadline, budget, or a lease that nobody renewed)",
        "nexa run --resume RUN goes on from the checkpoint; raise max_hours or the budget (nexa budget extend USD);"
        " a lease is renewed while a controller is there (nexa attach RUN)",
        reasons=(Reason.DEADLINE,),
    ),
    Signature(
        "budget",
        "reason budget",
        "the budget was spent",
        "nexa budget extend USD, or a larger budget_usd, then nexa run --resume RUN goes on from the checkpoint",
        reasons=(Reason.BUDGET,),
    ),
    Signature(
        "stopped_by_user",
        "reason stopped by the user",
        "somebody stopped it (nexa stop, Ctrl-C)",
        "nexa run --resume RUN goes on from the checkpoint",
        reasons=(Reason.STOPPED, "stop"),
    ),
    Signature(
        "disconnected",
        "reason disconnected",
        "the controller went away, and on_disconnect is kill",
        "nexa run --resume RUN goes on; on_disconnect: keep lets a run live without us",
        reasons=(Reason.DISCONNECTED,),
    ),
    Signature(
        "superseded",
        "reason superseded",
        "a newer attempt of the run took its place",
        "nothing to mend; look at the newest attempt",
        reasons=(Reason.SUPERSEDED,),
    ),
    Signature(
        "left_early",
        "a rank ended with 0 while the others still worked",
        "it was through (exit code 0) while other ranks still waited for it",
        "give every rank the same number of steps: drop_last=True, the same max_steps, no early break",
    ),
    Signature(
        "torchrun_killed",
        "torchrun ended by signal 9 with its ranks",
        "torchrun was killed on this node, and its ranks with it",
        "look at nexa ssh NODE -- sudo dmesg: when the kernel did it, the node ran out of memory",
    ),
    Signature(
        "setup_failed",
        "setup: line 2 of 3 (make): exit code 2",
        "the setup of this node failed: {detail}",
        "nexa logs RUN has all that it printed (setup); mend the line in setup: of train.yaml (packages of Python"
        " belong into environment:), then nexa run again",
    ),
    Signature(
        "not_started",
        "an agent could not be started; not every node could be started",
        "it could not be started: {detail}",
        "nexa status; read the words of the node",
    ),
)
