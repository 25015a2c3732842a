"""Follows one attempt to its end: shows it, stops the others when one node fails, proves that nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.launch import stop_all
from nexa_dist.ops.spec import GRACE_S, NOTICE_GRACE_S
from nexa_dist.plan.recovery import End, Kind
from nexa_dist.run.follow import AgentEvent, Ended, Item, Line, Note, Quiet, follow
from nexa_dist.run.nodes import Link, on_all
from nexa_dist.run.workspace import RunFolder

LOST_AFTER_S = 30.0
"""A node that says nothing for so long is given up, and the others are stopped. A partition of 20 s heals."""
ASK_CLOUD_AFTER_S = 4.0
WOKE_AFTER_S = 5.0
"""A turn of our own loop that took so long: this machine slept, or we were stopped. No node is to blame for that."""
FAILED_GRACE_S = 5.0
HANG_GRACE_S = 5.0
HANG_WAIT_S = 2.0
"""For the other nodes' own agents to see the hang too, and to write their ranks' stacks."""
FAILURE = "another rank or node failed"
NOTICE = "spot notice"
EXIT_STOPPED = 143
SWEEP_TRIES = 3
ENDED = "signal 15"
NEVER_AGAIN = (2, 78)
"""Exit codes of a rank that name bad usage or config, and ranks that did not find each other as planned."""
BY_REASON: Mapping[str, Kind] = {"deadline": "deadline", "disconnected": "disconnected", NOTICE: "notice"}

Choice = Literal["detach", "stop"]


class View(Protocol):
    """Who is shown what happens."""

    def line(self, node: str, source: str, rank: int | None, text: bytes) -> None: ...
    def event(self, node: str, record: Mapping[str, Any]) -> None: ...
    def quiet(self, node: str, seconds: float) -> None: ...
    def note(self, text: str) -> None: ...
    def tick(self) -> None: ...
    def attempt(
        self,
        number: int,
        nodes: Sequence[str],
        world_size: int,
        resume_step: int | None,
        replaced: Sequence[str] = (),
    ) -> None: ...


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong. `rank` is -1 for a node."""

    at: float
    node: str
    rank: int
    what: str
    kind: Kind


@dataclass
class Watch:
    """State of one attempt as its nodes report it. `step` takes one item at a time and decides."""

    nodes: tuple[str, ...]
    attempt: int = 1
    started: set[str] = field(default_factory=set)
    prepared: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
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

    def step(self, item: Item) -> str:
        """Takes an item; answers what to do: "", "go" or why to stop."""
        if isinstance(item, AgentEvent):
            return self._event(item.node, item.record)
        if isinstance(item, Ended):
            self._ended(item.node, item.status)
        elif isinstance(item, Quiet) and item.seconds > LOST_AFTER_S:
            self.lost(item.node, f"no word for {item.seconds:.0f} s")
        return self._failed()

    def lost(self, node: str, why: str) -> str:
        """The node is gone; answers as `step`."""
        if node not in self.ends:
            self.ends[node] = {"state": "unreachable", "code": 1, "left": None, "reason": why}
            self._fail(time.time(), node, -1, why, "node")
        return self._failed()

    def _failed(self) -> str:
        if not self.failures or self.stopping:
            return ""
        return "hang" if any(f.kind == "hang" for f in self.failures) else FAILURE

    def _ended(self, node: str, status: dict[str, Any]) -> None:
        self.ends[node] = status
        reason = str(status.get("reason") or "")
        if status["state"] == "stopped":
            self.stopping = self.stopping or reason
        for record in status.get("ranks", []):  # an attach comes too late for the events
            self._rank_exit(node, record)
        if status["state"] in ("failed", "lost", "absent"):
            kinds: dict[str, Kind] = {"hang": "hang", "prepare": "prepare", "torchrun": "launcher"}
            kind = "agent" if status["state"] != "failed" else kinds.get(reason, "start")
            if kind == "prepare" and status.get("code") in NEVER_AGAIN:
                kind = "config"
            self._fail(time.time(), node, -1, reason or status["state"], kind)

    def _event(self, node: str, record: dict[str, Any]) -> str:
        name = record["event"]
        if name == "started" and record["attempt"] == self.attempt:
            self.started.add(node)
        if node not in self.started:  # of an earlier attempt: its failures are not ours
            return ""
        if name == "prepared":
            self.prepared.add(node)
            return "go" if self.prepared == set(self.nodes) and not record.get("go") else ""
        if name == "torchrun":
            self.running.add(node)
        elif name == "progress":
            self._progress(record)
        elif name == "notice":
            self.leaving[node] = record
            return "" if self.stopping else NOTICE
        elif name == "stopping":  # by its deadline, a spot notice, or somebody else's `nexa stop`
            self.stopping = self.stopping or str(record["reason"])
        elif name == "hang":
            stuck = ", ".join(map(str, record["ranks"]))
            self._fail(record["at"], node, -1, f"rank {stuck} did no step for {record['stalled_s']:.0f} s", "hang")
            return self._failed()
        elif name == "rank_exit":
            self._rank_exit(node, record)
            return self._failed()
        return ""

    def _progress(self, record: dict[str, Any]) -> None:
        self.steps |= {int(rank): step for rank, step in record["steps"].items() if step is not None}
        saved = record.get("saved")
        if saved is not None and saved != self.saved:
            self.saved, self.saved_unix = saved, record["at"]

    def _rank_exit(self, node: str, record: dict[str, Any]) -> None:
        if record.get("step") is not None:
            self.steps[record["rank"]] = max(record["step"], self.steps.get(record["rank"], 0))
        if record["code"] or record["signal"]:
            kind: Kind = "killed" if record["signal"] else "config" if record["code"] in NEVER_AGAIN else "rank"
            what = f"signal {record['signal']}" if record["signal"] else f"exit code {record['code']}"
            if record.get("oom"):
                kind, what = "oom", f"{what}, out of memory"
            self._fail(record["at"], node, record["rank"], what, kind)

    def _fail(self, at: float, node: str, rank: int, what: str, kind: Kind) -> None:
        # What follows a stop is its consequence; but what failed just before it, and began it, may be told of late.
        if not self.stopping or rank >= 0 or (self.stopping == FAILURE and kind in ("agent", "hang")):
            self.failures.append(Failure(at, node, rank, what, kind))

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
        return "stopped" if self.stopping not in ("", FAILURE, "hang") else "failed"

    def end(self, lost: Sequence[str], first_step: int | None, started_unix: float, ended_unix: float) -> End:
        """How the attempt ended. A node that is `lost` explains what its peers died of."""
        span: dict[str, Any] = {"first_step": first_step, "last_step": max(self.steps.values(), default=None)}
        span |= {"started_unix": started_unix, "ended_unix": ended_unix}
        state, first = self.state, self.first_failure
        if state == "completed":
            return End("completed", "", **span)
        if self.leaving:
            node = min(self.leaving)
            return End("notice", f"{node} was given notice: {self.leaving[node].get('action', 'stop')}", node, **span)
        if state == "stopped":
            return End(BY_REASON.get(self.stopping, "stopped"), self.stopping, **span)
        if lost:
            why = next((str(self.ends[n].get("reason")) for n in lost if n in self.ends), "it does not answer")
            return End("node", f"node {lost[0]}: {why}", lost[0], **span)
        if first is None:
            return End("start", "ended without a word", **span)
        where = f"rank {first.rank} on {first.node}" if first.rank >= 0 else f"node {first.node}"
        return End(first.kind, f"{where}: {first.what}", first.node, first.rank, **span)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `left` is the number of processes of the run by node (None: not reachable)."""

    state: str
    cause: str
    left: dict[str, int | None]
    end: End
    failed_source: tuple[str, str] | None = None
    """(node, log file) whose last lines explain a failure."""
    leaving: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    saved: int | None = None
    """Step of the newest whole checkpoint that rank 0 told of."""
    saved_unix: float | None = None


def watch(
    ctx: Context,
    run: RunFolder,
    links: list[Link],
    record: dict[str, Any],
    *,
    view: View,
    on_interrupt: Callable[[], Choice],
    gone: Callable[[str], str],
    detach: bool = False,
) -> Outcome | None:
    """Follows the newest attempt to its end; None when the user lets it go on alone (or `detach`, once it runs).

    `gone` tells why the provider knows a silent node to be dead; empty when it does not.
    """
    run_dirs = {name: record["nodes"][name]["run_dir"] for name in (link.node.name for link in links)}
    state = Watch(tuple(run_dirs), record["attempts"][-1]["attempt"])
    # Events also that an earlier reader has seen: an attach decides from all of them.
    stream = follow(links, run_dirs, run.logs, replay=True)
    stopper, awake = _Stopper(links, record), _Awake()
    try:
        while not state.done:
            try:
                item = stream.next()
                awake.turn()
                view.tick()
                if item is None:
                    continue
                if isinstance(item, Line):
                    view.line(item.node, item.source, item.rank, item.text)
                    continue
                if isinstance(item, Note):
                    view.note(f"{item.node}: {item.text}")
                    continue
                if isinstance(item, AgentEvent):
                    view.event(item.node, item.record)
                action = _quiet(state, item, view, awake, gone) if isinstance(item, Quiet) else state.step(item)
                if action == "go":
                    action = _go(state, links, run_dirs)
                if action:
                    state.stopping = action
                    grace_s = {NOTICE: NOTICE_GRACE_S, "hang": HANG_GRACE_S}.get(action, FAILED_GRACE_S)
                    stopper.start(action, grace_s, HANG_WAIT_S if action == "hang" else 0)
                if detach and state.running == set(state.nodes):
                    return None
            except KeyboardInterrupt:
                if not state.stopping and on_interrupt() == "detach":
                    return None
                again = bool(state.stopping)
                state.stopping = "stopped by the user"
                view.note("stopping at once" if again else f"stopping: up to {GRACE_S:.0f} s for a checkpoint")
                stopper.start(state.stopping, 0 if again else GRACE_S)
    finally:
        stream.close()
    stopper.join()
    return _outcome(ctx, state, links, record)


class _Awake:
    """Notices that we slept: after that the nodes get their time anew."""

    def __init__(self) -> None:
        self.last, self.since = time.monotonic(), 0.0

    def turn(self) -> None:
        now = time.monotonic()
        if now - self.last > WOKE_AFTER_S:
            self.since = now
        self.last = now

    def for_s(self) -> float:
        return time.monotonic() - self.since


def _quiet(state: Watch, item: Quiet, view: View, awake: _Awake, gone: Callable[[str], str]) -> str:
    """A link is down. Asks the provider before the time is up; time that we slept does not count."""
    seconds = min(item.seconds, awake.for_s())
    if seconds <= ASK_CLOUD_AFTER_S or item.node in state.ends:
        return ""
    if why := gone(item.node):
        return state.lost(item.node, why)
    view.quiet(item.node, seconds)
    return state.step(Quiet(item.node, seconds))


def _go(state: Watch, links: list[Link], run_dirs: dict[str, str]) -> str:
    """Lets the ranks start on every node; a node that cannot be told ends the run on the others."""
    try:
        on_all(links, lambda link: link.call("go", run_dirs[link.node.name]))
        return ""
    except NexaError as error:
        what = f"not every node could be started: {error}"
        state.failures.append(Failure(time.time(), links[0].node.name, -1, what, "start"))
        return FAILURE


def _outcome(ctx: Context, state: Watch, links: list[Link], record: dict[str, Any]) -> Outcome:
    """Asks every node once more what is left of the run; ends it where there is anything."""
    known = [name for name, end in state.ends.items() if end["state"] == "unreachable"]
    left = sweep(ctx, [link for link in links if link.node.name not in known], record, release=state.state != "failed")
    left |= dict.fromkeys(known)
    lost = [name for name in state.nodes if left[name] is None]
    attempt = record["attempts"][-1]
    end = state.end(lost, attempt["resume_step"], attempt["started_unix"], time.time())
    source = None
    if state.state == "failed" and end.node and end.kind != "node":
        log = f"rank_{end.rank}/attempt_{state.attempt}.log"
        if end.rank < 0:
            log = f"{'prepare' if end.kind in ('prepare', 'config') else 'torchrun'}.attempt_{state.attempt}.log"
        source = (end.node, log)
    outcome = "failed" if end.kind == "notice" else state.state
    return Outcome(outcome, end.words, left, end, source, dict(state.leaving), state.saved, state.saved_unix)


def sweep(ctx: Context, links: Sequence[Link], record: dict[str, Any], *, release: bool) -> dict[str, int | None]:
    """Processes of the run that are left on each node after everything was ended; None where nobody answers.

    With `release` what waits there for another attempt ends too.
    """

    message = {"grace_s": 0, "reason": "sweep", "release": release, "attempt": record["attempts"][-1]["attempt"]}

    def one(link: Link) -> int | None:
        why = ""
        for again in range(SWEEP_TRIES):  # a shared connection that died while we slept is made anew by the next call
            try:
                return len(link.call("stop", record["nodes"][link.node.name]["run_dir"], message=message)["left"])
            except NexaError as error:
                why = str(error)
                ctx.sleep(float(again))
        ctx.say(f"warning: {link.node.name}: cannot be proven clean: {why}")
        return None

    return dict(zip((link.node.name for link in links), on_all(links, one), strict=True))


class _Stopper:
    """Stops all nodes from a thread of its own, so that their logs are read meanwhile."""

    def __init__(self, links: list[Link], record: dict[str, Any]) -> None:
        self.links, self.record = links, record
        self.threads: list[threading.Thread] = []

    def start(self, reason: str, grace_s: float, after_s: float = 0) -> None:
        thread = threading.Thread(target=self._stop, args=(reason, grace_s, after_s), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _stop(self, reason: str, grace_s: float, after_s: float) -> None:
        time.sleep(after_s)
        try:
            stop_all(self.links, self.record, reason, grace_s, release=reason not in (FAILURE, "hang", NOTICE))
        except NexaError:
            return  # an unreachable node: the proof at the end names it

    def join(self) -> None:
        for thread in self.threads:
            thread.join(NOTICE_GRACE_S + 60)
