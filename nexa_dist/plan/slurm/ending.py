"""What the end of a step means, by what Slurm says of its job: the same facts, the same answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Cause = Literal["", "preempted", "time limit", "requeued", "cancelled"]
"""Why Slurm wanted the nodes back; empty when it did not."""
NOTICES: dict[Cause, str] = {
    "preempted": "Slurm preempted the job",
    "time limit": "the job's time limit came",
    "requeued": "Slurm took the nodes back (preempted, a node failed, or scontrol requeue)",
}
"""Ends after which the job goes on, in words."""
NEVER = re.compile(
    r"Job's account|\b(InvalidAccount|AccountNotAllowed|InvalidQOS|QOSNotAllowed|PartitionTimeLimit|PartitionNodeLimit"
    r"|BadConstraints|DependencyNeverSatisfied|JobHeldAdmin|(Assoc|QOS)Max\w+PerJob\w*)\b"
)
"""Reasons for which a job waits until somebody changes it, or the cluster."""
UNSETTLED = ("", "None", "PartitionConfig")
"""Reasons of a job that no scheduler has looked at; the last one may stay where so many nodes are not up."""
WOULD_NEVER = (
    "it was cancelled. slurm.account, qos, partition, time, constraint: sinfo, sacctmgr show associations user=$USER"
)


def cause(job: Mapping[str, str], restarts: int, noticed: bool) -> Cause:
    """`job` has the fields of `scontrol show job` after the step's end, empty when Slurm does not know it any more;
    `restarts` is what SLURM_RESTART_COUNT was when the job began. `noticed`: the batch shell got SIGTERM.

    Preempted without grace, and by an administrator, a job is in the queue again before its processes have ended: its
    Restarts are more. With grace it is still RUNNING, and PreemptTime is set. The batch shell alone gets the signal
    before the time limit (`--signal=B:`). Whatever else is not RUNNING was cancelled.
    """
    if int(job.get("Restarts") or 0) > restarts or job.get("JobState") in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        return "preempted" if "preempt" in job.get("Reason", "").lower() else "requeued"
    if job.get("JobState", "RUNNING") not in ("RUNNING", "SUSPENDED"):
        return "cancelled"
    if job.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"):
        return "preempted"
    return "time limit" if noticed else ""


def never(state: str, reason: str) -> bool:
    """Tell whether a job that waits for this reason would wait for ever."""
    return state == "PENDING" and bool(NEVER.search(reason))
