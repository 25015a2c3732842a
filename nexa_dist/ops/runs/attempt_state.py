"""State of an attempt by the reports of its nodes, and what follows from it. Nothing here reads, waits or sends."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexa_dist.model import End, Kind
from nexa_dist.node.protocol import FINAL, UNSAID, VERSION, Event, Reason
from nexa_dist.plan.money.budget import OF_RUN
from nexa_dist.run.logs.items import AgentEvent, Ended, Item
from nexa_dist.wire import MOST_RANKS, OtherVersion

NEARLY_S = 1.0
"""Seconds by which the clocks of two nodes may differ unnoticed."""
EXIT_STOPPED = 143
ENDED = "signal 15"
NEVER_AGAIN = (2, 78)
"""Exit codes of a rank that name bad usage or config, and ranks that did not find each other as planned."""
SPENT_ALONE = f"{OF_RUN}, or of its cluster: used up while nobody followed it"
BY_REASON: Mapping[str, Kind] = {
    Reason.DEADLINE: "deadline", Reason.DISCONNECTED: "disconnected", Reason.NOTICE: "notice",
    Reason.SCHEDULER: "notice",
}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong. `rank` is -1 for a node."""

    at: float
    node: str
    rank: int
    what: str
    kind: Kind


@dataclass
class AttemptState:
    """State of one attempt as its nodes report it. `step` takes one item at a time and decides."""

    nodes: tuple[str, ...]
    attempt: int = 1
    spans: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """First and last rank of each node: of others it has nothing to tell."""
    started: set[str] = field(default_factory=set)
    prepared: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    """Nodes that have ended what they ran, and whose machines may come back."""
    failures: list[Failure] = field(default_factory=list)
    stopping: str = ""
    """Why the run is being stopped; what ends after that is no failure of its own."""
    leaving: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Spot notices by node."""
    steps: dict[int, int] = field(default_factory=dict)
    """Newest step by rank."""
    saved: int | None = None
    """Step of the newest whole checkpoint, as rank 0 told it."""
    saved_unix: float | None = None
    spent: str = ""
    """Budget that is used up, in words."""
    skew_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds by which the clock of each node is ahead of ours."""

    def step(self, item: Item) -> str:
        """Takes an item; answers what to do: "", "go" or why to stop."""
        if isinstance(item, AgentEvent):
            return self._event(item.node, item.record)
        if isinstance(item, Ended):
            self._ended(item.node, item.status)
        return self._failed()

    def lost(self, node: str, why: str, state: str = "unreachable") -> str:
        """The node is gone, or `faulty`: nothing more of it is believed. Answers as `step`."""
        if node not in self.ends:
            self.ends[node] = {"state": state, "code": 1, "left": None, "reason": why}
            self._fail(time.time(), node, -1, why, "node")
        return self._failed()

    def _failed(self) -> str:
        if not self.failures or self.stopping:
            return ""
        return Reason.HANG if any(f.kind == "hang" for f in self.failures) else Reason.FAILURE

    def _ended(self, node: str, status: dict[str, Any]) -> None:
        if status["state"] not in FINAL:
            why = status["reason"] if status["state"] == "faulty" else f"it says that it has ended, {status['state']}"
            self.lost(node, why, "faulty")
            return
        self.ends[node] = status
        reason = str(status.get("reason") or "")
        if status["state"] == "stopped":
            self._told_to_stop(reason)
        for record in status.get("ranks", []):  # an attach comes too late for the events
            self._rank_exit(node, record)
        if status["state"] in ("failed", "lost", "absent"):
            kinds: dict[str, Kind] = {Reason.HANG: "hang", Reason.PREPARE: "prepare", Reason.TORCHRUN: "launcher"}
            kind = "agent" if status["state"] != "failed" else kinds.get(reason, "start")
            if reason.startswith(Reason.SETUP) or (kind == "prepare" and status.get("code") in NEVER_AGAIN):
                kind = "config"
            self._fail(time.time(), node, -1, reason or status["state"], kind)

    def _event(self, node: str, record: dict[str, Any]) -> str:
        name = record["event"]
        if name == Event.STARTED and record["attempt"] == self.attempt:
            if (version := record.get("version", UNSAID)) != VERSION:
                raise OtherVersion(node, version)
            self.started.add(node)
        if node not in self.started:  # of an earlier attempt: its failures are not ours
            return ""
        if name == Event.PREPARED:
            self.prepared.add(node)
            return "go" if self.prepared == set(self.nodes) and not record.get("go") else ""
        if name == Event.TORCHRUN:
            self.running.add(node)
        elif name == Event.PROGRESS:
            self._progress(node, record)
        elif name == Event.NOTICE:
            self.leaving[node] = record
            return "" if self.stopping else Reason.NOTICE
        elif name == Event.STOPPING:  # by its deadline, a spot notice, or somebody else's `nexa stop`
            self._told_to_stop(str(record["reason"]), record["at"] - self.skew_s.get(node, 0.0))
        elif name == Event.HANG:
            stuck = ", ".join(str(rank) for rank in record["ranks"] if self._owns(node, rank))
            self._fail(record["at"], node, -1, f"rank {stuck} did no step for {record['stalled_s']:.0f} s", "hang")
            return self._failed()
        elif name == Event.RANK_EXIT:
            self._rank_exit(node, record)
            return self._failed()
        return ""

    def _told_to_stop(self, reason: str, at: float | None = None) -> None:
        """Note why a node was told to stop: what fails later fails of that, though a failing node's own words may come
        first, since each node is heard by itself."""
        since = at is not None and all(f.at > at - NEARLY_S for f in self.failures)
        ours = (Reason.FAILURE, Reason.HANG)
        if not self.stopping or (since and self.stopping == Reason.FAILURE and reason not in ours):
            self.stopping = reason

    def _owns(self, node: str, rank: int) -> bool:
        first, last = self.spans.get(node, (0, MOST_RANKS))
        return first <= rank <= last

    def _progress(self, node: str, record: dict[str, Any]) -> None:
        told = {int(rank): step for rank, step in record["steps"].items() if step is not None}
        self.steps |= {rank: step for rank, step in told.items() if self._owns(node, rank)}
        saved = record.get("saved")
        if saved is not None and saved != self.saved and self._owns(node, 0):
            self.saved, self.saved_unix = saved, record["at"]

    def _rank_exit(self, node: str, record: dict[str, Any]) -> None:
        if not self._owns(node, record["rank"]):
            return
        if record.get("step") is not None:
            self.steps[record["rank"]] = max(record["step"], self.steps.get(record["rank"], 0))
        if record["code"] or record["signal"]:
            kind: Kind = "killed" if record["signal"] else "config" if record["code"] in NEVER_AGAIN else "rank"
            what = f"signal {record['signal']}" if record["signal"] else f"exit code {record['code']}"
            if record.get("oom"):
                kind, what = "oom", f"{what}, out of memory"
            at = record["at"] - self.skew_s.get(node, 0.0) if "at" in record else time.time()
            self._fail(at, node, record["rank"], what, kind)

    def _fail(self, at: float, node: str, rank: int, what: str, kind: Kind) -> None:
        # What follows a stop is its consequence; but what failed just before it, and began it, may be told of late.
        if not self.stopping or rank >= 0 or (self.stopping == Reason.FAILURE and kind in ("agent", "hang")):
            same = [f for f in self.failures if (f.node, f.rank, f.kind) == (node, rank, kind)]
            if not same or at < same[0].at:  # one each, however often a node tells it
                self.failures = [*(f for f in self.failures if f not in same), Failure(at, node, rank, what, kind)]

    @property
    def first_failure(self) -> Failure | None:
        """A hang or a lost agent, which no rank brings about; else the rank that failed first, and of these one that
        was not ended by SIGTERM, as torchrun ends its ranks when another one failed; else the node."""
        causes = [f for f in self.failures if f.kind in ("hang", "agent")]
        ranks = [f for f in self.failures if f.rank >= 0]
        own = [f for f in ranks if f.what != ENDED]
        return min(causes or own or ranks or self.failures, key=lambda f: f.at, default=None)

    @property
    def done(self) -> bool:
        return set(self.ends) == set(self.nodes)

    @property
    def state(self) -> str:
        if {end["state"] for end in self.ends.values()} == {"completed"}:
            return "completed"
        return "stopped" if self.stopping not in ("", Reason.FAILURE, Reason.HANG) else "failed"

    def end(self, lost: Sequence[str], first_step: int | None, started_unix: float, ended_unix: float) -> End:
        """End of the attempt. A node that is `lost` explains what its peers died of."""
        span: dict[str, Any] = {"first_step": first_step, "last_step": max(self.steps.values(), default=None)}
        span |= {"started_unix": started_unix, "ended_unix": ended_unix}
        state, first = self.state, self.first_failure
        if state == "completed":
            return End("completed", "", **span)
        if self.leaving:
            node = min(self.leaving)
            return End("notice", f"{node} was given notice: {self.leaving[node].get('action', 'stop')}", node, **span)
        if state == "stopped" and self.stopping == Reason.BUDGET:
            return End("budget", self.spent or SPENT_ALONE, **span)
        if state == "stopped":
            return End(BY_REASON.get(self.stopping, "stopped"), self.stopping, **span)
        if lost:
            why = next((str(self.ends[n].get("reason")) for n in lost if n in self.ends), "it does not answer")
            return End("node", f"node {lost[0]}: {why}", lost[0], **span)
        if first is None:
            return End("start", "ended without a word", **span)
        where = f"rank {first.rank} on {first.node}" if first.rank >= 0 else f"node {first.node}"
        return End(first.kind, f"{where}: {first.what}", first.node, first.rank, **span)
