"""Protocol between the agent and its readers: events, reasons, states, the spec, and the version of them all.

Of the agent's modules this one is imported elsewhere too; like all of them it runs on Python 3.9.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, TypedDict

VERSION = 3
"""Version of this protocol and of the files in a run folder. A reader that meets another version believes nothing of
it. Whoever adds an event, a field that an event must have, a reason or a key of the spec raises it: readers of the
version before take what they do not know for the words of a stranger (tests/unit/node/test_protocol.py)."""
UNSAID = 2
"""The version of an agent that does not say it."""
HEARTBEAT_S = 10.0


class Event:
    """Names of events in agent.jsonl; wire.py has the fields of each."""

    STARTED, HEARTBEAT, ENDED = "started", "heartbeat", "ended"
    SETUP, PREPARE, PREPARED, TORCHRUN = "setup", "prepare", "prepared", "torchrun"
    RANK_START, RANK_EXIT, PROGRESS, HANG = "rank_start", "rank_exit", "progress", "hang"
    STOPPING, NOTICE, DUE, IMDS, WARM = "stopping", "notice", "due", "imds", "warm"
    FLIGHT, TOLD, KEPT = "flight", "told", "kept"


class Reason:
    """Why an attempt ended, or is to end."""

    PREPARE, TORCHRUN, HANG = "prepare", "torchrun", "hang"
    SETUP = "setup"
    """Begins a reason; the line that failed follows."""
    FAILURE, SUPERSEDED = "another rank or node failed", "superseded"
    NOTICE, DEADLINE, DISCONNECTED, BUDGET = "spot notice", "deadline", "disconnected", "budget"
    STOPPED = "stopped by the user"
    SCHEDULER = "notice of the scheduler"


EVENTS = frozenset(name for key, name in vars(Event).items() if key.isupper())
FREQUENT = (b'{"event": "heartbeat"', b'{"event": "progress"')
"""Beginnings of the event lines of which only the last one matters."""
AT_WORK = ("preparing", "running", "stopping")
"""States of an agent that has begun."""
ENDINGS = ("completed", "failed", "stopped")
FINAL = (*ENDINGS, "lost", "absent")
Spec = TypedDict(
    "Spec",
    {
        "version": int, "run_id": str, "attempt": int, "node": str, "launcher": str, "argv": Any, "setup": Any,
        "prepare": Any, "path": Any, "data": Any, "container": Any, "outputs": Any,
        "env": Any, "cwd": str, "code": str, "config": Optional[Dict[str, Any]], "grace_s": float,
        "notice_grace_s": float, "deadline_in_s": Optional[float], "hang_timeout_s": Optional[float],
        "on_disconnect": str, "spot": bool, "keep_warm": bool, "preload": Any, "first_rank": int, "nproc": int,
        "world_size": int, "node_rank": int, "nnodes": int, "master_addr": str, "master_port": int,
        "peers": Any,
    },
    total=False,
)  # fmt: skip
"""Spec of an attempt, which the command `start` reads. `peers` are the run folders of the other nodes where no
controller watches (the command `hold`)."""
