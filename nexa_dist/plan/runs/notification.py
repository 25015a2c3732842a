"""Messages about a run, for those whom `notify` of cluster.yaml names. Pure: the facts come in.

The key of a message is the same whoever makes it (another controller, a node's agent), so that each is sent once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_dist.model import Decision
from nexa_dist.plan.money.budget import OF_RUN, Budget

NEAR_S, NEAR_SHARE = 900.0, 0.1
"""A deadline is near when so many seconds are left, or this share of the whole time, whichever is less."""
NEXT_OF_END = {"completed": "nexa pull {run}", "failed": "nexa why {run}", "stopped": "nexa run --resume {run}"}


@dataclass(frozen=True)
class Message:
    """One message. `to_json` is the body that a webhook gets."""

    key: str
    event: str
    text: str
    run: str = ""
    cluster: str = ""
    attempt: int | None = None
    state: str = ""
    cause: str = ""
    why: str = ""
    usd: float | None = None
    next: str = ""
    at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self).items() if name != "key" and value not in ("", None)}
        return {"id": f"{self.run or self.cluster}/{self.key}", **told, "from": "nexa"}


@dataclass(frozen=True)
class Subject:
    """What the messages of a run are about; `usd` is what it has cost so far."""

    run: str
    cluster: str
    attempt: int
    usd: float
    at: float

    def ended(self, state: str, cause: str, why: str) -> Message:
        text = f"{self.run} {'has ' * (state == 'completed')}{state}" + (f": {cause}" if cause else "")
        following = NEXT_OF_END.get(state, "nexa runs").format(run=self.run)
        return self._made(f"run_ended:{self.attempt}", "run_ended", text, following, state=state, cause=cause, why=why)

    def failed(self, cause: str, why: str, decision: Decision) -> Message:
        text = f"{self.run}: attempt {self.attempt} failed: {cause}; next: {decision.action}"
        key, following = f"attempt_failed:{self.attempt}", f"nexa why {self.run}"
        return self._made(key, "attempt_failed", text, following, state="failed", cause=cause, why=why)

    def budget(self, budget: Budget, share: float, words: str) -> Message:
        cure = f"nexa stop {self.run}" if budget.what == OF_RUN else f"nexa budget extend USD --cluster {self.cluster}"
        key = f"budget:{budget.what}:{budget.budget_usd:.2f}:{share}"
        return self._made(key, "budget", f"{self.run}: {words}", cure)

    def deadline(self, key: str, what: str, due_unix: float) -> Message:
        left = max(0.0, due_unix - self.at) / 60
        text = f"{self.run}: {what} ends it in {left:.0f} min ({clock(due_unix)}), with a checkpoint"
        return self._made(key, "deadline", text, f"nexa logs {self.run}")

    def notice(self, node: str, notice: Mapping[str, Any]) -> Message:
        at = notice.get("at_unix") or notice.get("at") or 0.0
        text = f"{self.run}: {node} was given notice: {notice.get('action', 'stop')} at {clock(at)}"
        return self._made(notice_key(node, at), "notice", text, "nexa status")

    def replaced(self, names: Sequence[str], why: str) -> Message:
        text = f"{self.run}: {', '.join(names)} made anew after attempt {self.attempt}"
        return self._made(f"replaced:{self.attempt}:{','.join(names)}", "replaced", text, "nexa status", cause=why)

    def _made(self, key: str, event: str, text: str, following: str, **more: str) -> Message:
        return Message(
            key, event, text, self.run, self.cluster, self.attempt, usd=round(self.usd, 4), next=following, at=self.at,
            **more,
        )  # fmt: skip


def notice_key(node: str, at_unix: float) -> str:
    return f"notice:{node}:{at_unix:.0f}"


def deadline_key(by_hand: int) -> str:
    """Key of the run's own deadline, which begins anew when somebody starts the run again."""
    return f"deadline:run:{by_hand}"


def clock(unix: float) -> str:
    return time.strftime("%H:%M UTC", time.gmtime(unix))


def near(total_s: float) -> float:
    """Seconds before a deadline at which it is told."""
    return min(NEAR_S, total_s * NEAR_SHARE)
