"""Follows a run to its end: shows it, stops the others when one node fails, proves that nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.launch import GRACE_S, stop_all
from nexa_dist.run.follow import EVENTS, AgentEvent, Ended, Item, Line, Quiet, follow, marks
from nexa_dist.run.nodes import Link, on_all
from nexa_dist.run.workspace import RunFolder

LOST_AFTER_S = 60.0
"""A node that says nothing for so long is given up, and the others are stopped."""
FAILED_GRACE_S = 5.0
FAILURE = "another rank or node failed"

Choice = Literal["detach", "stop"]


@dataclass
class Watch:
    """State of one attempt as its nodes report it. `step` takes one item at a time and decides."""

    nodes: tuple[str, ...]
    attempt: int = 1
    started: set[str] = field(default_factory=set)
    prepared: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[tuple[float, str, int, str]] = field(default_factory=list)
    """(unix time, node, rank or -1, what happened) of each failure."""
    stopping: str = ""
    """Why the run is being stopped; what ends after that is no failure of its own."""

    def step(self, item: Item) -> str:
        """Takes an item; answers what to do: "", "go" or "stop"."""
        if isinstance(item, AgentEvent):
            return self._event(item.node, item.record)
        if isinstance(item, Ended):
            self.ends[item.node] = item.status
            if item.status["state"] == "stopped":
                self.stopping = self.stopping or str(item.status.get("reason"))
            for record in item.status.get("ranks", []):  # an attach comes too late for the events
                self._rank_exit(item.node, record)
            if item.status["state"] in ("failed", "lost", "absent"):
                self._fail(time.time(), item.node, -1, item.status.get("reason") or item.status["state"])
        elif isinstance(item, Quiet) and item.seconds > LOST_AFTER_S and item.node not in self.ends:
            self.ends[item.node] = {"state": "unreachable", "code": 1, "left": None}
            self._fail(time.time(), item.node, -1, f"no word for {item.seconds:.0f} s")
        return "stop" if self.failures and not self.stopping else ""

    def _event(self, node: str, record: dict[str, Any]) -> str:
        name = record["event"]
        if name == "started" and record["attempt"] == self.attempt:
            self.started.add(node)
        if node not in self.started:  # of an earlier attempt: its failures are not ours
            return ""
        if name == "prepared":
            self.prepared.add(node)
            return "go" if self.prepared == set(self.nodes) else ""
        if name == "torchrun":
            self.running.add(node)
        if name == "stopping":  # by its deadline, or by somebody else's `nexa stop`
            self.stopping = self.stopping or str(record["reason"])
        if name == "rank_exit":
            self._rank_exit(node, record)
            return "stop" if self.failures and not self.stopping else ""
        return ""

    def _rank_exit(self, node: str, record: dict[str, Any]) -> None:
        if record["code"] or record["signal"]:
            what = f"signal {record['signal']}" if record["signal"] else f"exit code {record['code']}"
            self._fail(record["at"], node, record["rank"], what)

    def _fail(self, at: float, node: str, rank: int, what: str) -> None:
        if not self.stopping or rank >= 0:
            self.failures.append((at, node, rank, what))

    @property
    def first_failure(self) -> tuple[float, str, int, str] | None:
        """The rank that failed first; without one, the node."""
        ranks = [f for f in self.failures if f[2] >= 0]
        return min(ranks or self.failures, default=None)

    @property
    def done(self) -> bool:
        return set(self.ends) == set(self.nodes)

    @property
    def state(self) -> str:
        if {end["state"] for end in self.ends.values()} == {"completed"}:
            return "completed"
        return "stopped" if self.stopping not in ("", FAILURE) else "failed"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `left` is the number of processes of the run by node (None: not reachable)."""

    state: str
    cause: str
    left: dict[str, int | None]
    failed_source: tuple[str, str] | None = None
    """(node, log file) whose last lines explain a failure."""


def watch(
    ctx: Context,
    run: RunFolder,
    links: list[Link],
    record: dict[str, Any],
    *,
    on_line: Callable[[Line], None],
    on_interrupt: Callable[[], Choice],
    detach: bool = False,
) -> Outcome | None:
    """Follows the newest attempt to its end; None when the user lets it go on alone (or `detach`, once it runs)."""
    run_dirs = {name: entry["run_dir"] for name, entry in record["nodes"].items()}
    state = Watch(tuple(link.node.name for link in links), record["attempts"][-1]["attempt"])
    # Events from their beginning, also those that an earlier reader has seen: an attach decides from all of them.
    seen = {name: {k: v for k, v in marks(run.logs / name).items() if k != EVENTS} for name in run_dirs}
    stream = follow(links, run_dirs, run.logs, seen=seen)
    stopper = _Stopper(links, record)
    try:
        while not state.done:
            try:
                item = stream.next()
                if item is None:
                    continue
                if isinstance(item, Line):
                    on_line(item)
                    continue
                if isinstance(item, Quiet) and item.seconds > 5:
                    ctx.say(f"warning: no word from {item.node} for {item.seconds:.0f} s; the run goes on there")
                action = state.step(item)
                if action == "go":
                    action = _go(state, links, run_dirs)
                if action == "stop":
                    state.stopping = FAILURE
                    stopper.start(FAILURE, FAILED_GRACE_S)
                if detach and state.running == set(state.nodes):
                    return None
            except KeyboardInterrupt:
                if not state.stopping and on_interrupt() == "detach":
                    return None
                again = bool(state.stopping)
                state.stopping = "stopped by the user"
                ctx.say("stopping at once" if again else f"stopping: up to {GRACE_S:.0f} s for a checkpoint")
                stopper.start(state.stopping, 0 if again else GRACE_S)
    finally:
        stream.close()
    stopper.join()
    return _outcome(ctx, state, links, run_dirs)


def _go(state: Watch, links: list[Link], run_dirs: dict[str, str]) -> str:
    """Lets the ranks start on every node; a node that cannot be told ends the run on the others."""
    try:
        on_all(links, lambda link: link.call("go", run_dirs[link.node.name]))
        return ""
    except NexaError as error:
        state.failures.append((time.time(), links[0].node.name, -1, f"not every node could be started: {error}"))
        return "stop"


def _outcome(ctx: Context, state: Watch, links: list[Link], run_dirs: dict[str, str]) -> Outcome:
    """Asks every node once more what is left of the run; ends it where there is anything."""

    def sweep(link: Link) -> int | None:
        try:
            status = link.call("stop", run_dirs[link.node.name], message={"grace_s": 0, "reason": "sweep"})
            return len(status["left"])
        except NexaError as error:
            ctx.say(f"warning: {link.node.name}: cannot be proven clean: {error}")
            return None

    left = dict(zip((link.node.name for link in links), on_all(links, sweep), strict=True))
    first = state.first_failure
    if state.state != "failed" or not first:
        reasons = sorted({str(e.get("reason")) for e in state.ends.values() if e.get("reason")})
        return Outcome(state.state, ", ".join(reasons), left)
    _, node, rank, what = first
    if rank >= 0:
        return Outcome(
            "failed", f"rank {rank} on {node}: {what}", left, (node, f"rank_{rank}/attempt_{state.attempt}.log")
        )
    log = f"{'prepare' if what == 'prepare' else 'torchrun'}.attempt_{state.attempt}.log"
    return Outcome("failed", f"node {node}: {what}", left, (node, log))


class _Stopper:
    """Stops all nodes from a thread of its own, so that their logs are read meanwhile."""

    def __init__(self, links: list[Link], record: dict[str, Any]) -> None:
        self.links, self.record = links, record
        self.threads: list[threading.Thread] = []

    def start(self, reason: str, grace_s: float) -> None:
        thread = threading.Thread(target=self._stop, args=(reason, grace_s), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _stop(self, reason: str, grace_s: float) -> None:
        try:
            stop_all(self.links, self.record, reason, grace_s)
        except NexaError:
            return  # an unreachable node: the proof at the end names it

    def join(self) -> None:
        for thread in self.threads:
            thread.join(GRACE_S + 60)
