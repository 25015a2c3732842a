"""Follows one attempt to its end: shows it, stops the others when one node fails, proves that nothing is left."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nexa_dist.errors import Leave, NexaError
from nexa_dist.model import End
from nexa_dist.node.protocol import FINAL, Event, Reason
from nexa_dist.ops.context import Context
from nexa_dist.ops.health.witness import Witnesses
from nexa_dist.ops.runs.agent_spec import GRACE_S, NOTICE_GRACE_S
from nexa_dist.ops.runs.attempt_state import AttemptState, Failure
from nexa_dist.ops.runs.launch import stop_all
from nexa_dist.ops.view import View
from nexa_dist.ops.work import kept
from nexa_dist.plan.failures.log_tail import TAIL_BYTES
from nexa_dist.plan.health.lost import ASK_AFTER_S
from nexa_dist.run import files
from nexa_dist.run.logs.follower import How
from nexa_dist.run.logs.items import AgentEvent, Item, Line, Note, Quiet
from nexa_dist.run.logs.mirror import TAIL
from nexa_dist.run.logs.stream import Stream, follow
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, Unreachable, by_node, on_all
from nexa_dist.run.workspace import RunFolder

WOKE_AFTER_S = 5.0
"""A turn of our own loop that took so long: this machine slept, or we were stopped. No node is to blame for that."""
FAILED_GRACE_S = 5.0
HANG_GRACE_S = 5.0
HANG_WAIT_S = 2.0
"""Seconds for the other nodes' own agents to see the hang too, and to write their ranks' stacks."""
SWEEP_TRIES = 3
REST_S = 10.0
"""After the end of an attempt for what its logs lack here; the rest waits on the nodes for `nexa logs`."""
TAILS_S = 10.0
AGAIN_S = 3.0
"""Between two tries to tell a node to stop that cannot be reached."""
OURS = (Reason.FAILURE, Reason.HANG, Reason.NOTICE)
"""Stops after which the run goes on."""
ENDED_S = 90.0
"""A node that was told to stop says by then, beyond its time for a checkpoint, that it has; or it is at fault."""

Choice = Literal["detach", "stop"]


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
    behind: Mapping[str, int] = field(default_factory=dict)
    """Bytes of logs that did not come in time, by node."""
    lost: tuple[str, ...] = ()
    """Nodes that a witness called lost; of others in `left` that do not answer nobody knows that."""


def watch(
    ctx: Context,
    run: RunFolder,
    links: list[Link],
    record: Run,
    *,
    view: View,
    on_interrupt: Callable[[], Choice],
    witnesses: Witnesses,
    spent: Callable[[], str] = lambda: "",
    detach: bool = False,
) -> Outcome | None:
    """Follows the newest attempt to its end; None when the user lets it go on alone (or `detach`, once it runs and none
    of it has failed: nodes that we stop tell nobody why). Raises Leave when we are told to go; it goes on then too.

    `witnesses` are asked for silent nodes. `spent` tells which budget is used up; it is asked all the time.
    """
    run_dirs = {link.node.name: record.run_dir(link.node.name) for link in links}
    state = AttemptState(tuple(run_dirs), record.last.attempt, record.last.ranks, skew_s=record.last.skew_s)
    # Events also that an earlier reader has seen: an attach decides from all of them.
    stream = follow(links, run_dirs, run.logs, How(replay=True))
    stopper, awake, asked = _Stopper(links, record), _Awake(), False
    try:
        while not state.done:
            try:
                item = stream.next()
                awake.turn()
                view.tick()
                if not state.stopping and (words := spent()):
                    state.spent, state.stopping = words, Reason.BUDGET
                    view.note(f"{words}: stopping with a checkpoint")
                    stopper.start(Reason.BUDGET, NOTICE_GRACE_S)
                stopper.hurry(state, awake)
                if not isinstance(item, Line):
                    _heard(stream, state, witnesses)
                if item is None:
                    continue
                show(item, view)
                _tell_kept(item, state, view)
                action = _quiet(state, item, view, awake, witnesses) if isinstance(item, Quiet) else state.step(item)
                if action == "go":
                    action = _go(state, links, run_dirs)
                if action:
                    state.stopping = action
                    grace_s = {Reason.NOTICE: NOTICE_GRACE_S, Reason.HANG: HANG_GRACE_S}.get(action, FAILED_GRACE_S)
                    stopper.start(action, grace_s, HANG_WAIT_S if action == Reason.HANG else 0)
                if detach and not state.stopping and state.running == set(state.nodes):
                    return None
            except Leave:
                raise
            except KeyboardInterrupt:
                if not asked and on_interrupt() == "detach":
                    return None
                state.stopping = Reason.STOPPED
                view.note("stopping at once" if asked else f"stopping: up to {GRACE_S:.0f} s for a checkpoint")
                stopper.start(state.stopping, 0 if asked else GRACE_S)
                asked = True
        ended_unix = time.time()
        behind = _rest(stream, view, [name for name, end in state.ends.items() if end["state"] in FINAL])
        if state.state == "failed":
            _keep_tails([link for link in links if link.node.name in behind], record, run.logs)
    finally:
        stream.close()
    stopper.join()
    return _outcome(ctx, state, links, record, ended_unix, behind)


def show(item: Item, view: View) -> None:
    """Hands an item of a node's stream to the view; silence is judged by who follows the run."""
    if isinstance(item, Line):
        view.line(item.node, item.source, item.rank, item.text, item.passing)
    elif isinstance(item, Note):
        view.note(f"{item.node}: {item.text}")
    elif isinstance(item, AgentEvent):
        view.event(item.node, item.record)


def _tell_kept(item: Item, state: AttemptState, view: View) -> None:
    """Say what a node has brought to the bucket at the end of this attempt."""
    if isinstance(item, AgentEvent) and item.node in state.started and item.record["event"] == Event.KEPT:
        for line in kept.words(item.node, item.record):
            view.note(line)


def _rest(stream: Stream, view: View, names: Sequence[str]) -> dict[str, int]:
    """The last lines of an attempt that has ended, for a while; answers what stays on which of these nodes."""
    try:
        for item in stream.rest(REST_S):
            view.tick()
            if item is not None:
                show(item, view)
    except Leave:
        raise
    except KeyboardInterrupt:
        view.note("not waiting for the last lines")
    behind = {name: size for name, size in stream.behind().items() if name in names}
    for name, size in behind.items():
        more = f", {size / 1e6:.0f} MB of them," if size else ""
        view.note(f"{name}: some of its logs{more} are still there; nexa logs fetches them while the node is up")
    return behind


def _keep_tails(links: Sequence[Link], record: Run, logs: Path) -> None:
    """The last bytes of the ranks' logs that did not come in time: `why` looks there for the cause."""
    attempt = record.last

    def keep(link: Link) -> None:
        name = link.node.name
        first, last = attempt.ranks[name]
        for rank in range(first, last + 1):
            source = f"rank_{rank}/attempt_{attempt.attempt}.log"
            with contextlib.suppress(NexaError, OSError):  # then the cause is what is here
                path = f"{record.run_dir(name)}/{source}"
                got = link.ssh.run(link.node, ("tail", "-c", str(TAIL_BYTES), path), timeout_s=TAILS_S)
                if not got.code:
                    files.write_bytes(logs / name / f"{source}{TAIL}", got.out[-TAIL_BYTES:], 0o600)

    if links:
        on_all(links, keep)


class _Awake:
    """Notices that we slept: after that the nodes get their time anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.last, self.since = clock(), 0.0

    def turn(self) -> None:
        now = self.clock()
        if now - self.last > WOKE_AFTER_S:
            self.since = now
        self.last = now

    def for_s(self) -> float:
        return self.clock() - self.since


def _heard(stream: Stream, state: AttemptState, witnesses: Witnesses) -> None:
    speaking = stream.speaking()
    for name in state.nodes:
        if name in speaking or name in state.ends:
            witnesses.heard(name, over=name in state.ends)


def _quiet(state: AttemptState, item: Quiet, view: View, awake: _Awake, witnesses: Witnesses) -> str:
    """A link is down, which says nothing of the node: only a witness does. Time that we slept does not count."""
    seconds = min(item.seconds, awake.for_s())
    if (seconds <= ASK_AFTER_S and not item.hung_up) or item.node in state.ends:
        return ""
    if seconds > ASK_AFTER_S:
        view.quiet(item.node, seconds)
    verdict = witnesses.quiet(item.node, seconds, item.hung_up)
    if verdict.kind in ("ended", "lost"):
        state.doubtful |= {item.node} if verdict.kind == "ended" else set()
        return state.lost(item.node, verdict.why)
    notice = state.leaving.get(item.node, {}).get("at_unix")
    if notice and time.time() > notice:  # its agent's own last word
        return state.lost(item.node, f"{verdict.why}, and its notice has run out")
    return ""


def _go(state: AttemptState, links: list[Link], run_dirs: dict[str, str]) -> str:
    """Lets the ranks start on every node; a node that cannot be told ends the run on the others."""
    try:
        on_all(links, lambda link: link.call("go", run_dirs[link.node.name]))
        return ""
    except NexaError as error:
        what = f"not every node could be started: {error}"
        state.failures.append(Failure(time.time(), links[0].node.name, -1, what, "start"))
        return Reason.FAILURE


def _outcome(
    ctx: Context,
    state: AttemptState,
    links: list[Link],
    record: Run,
    ended_unix: float,
    behind: dict[str, int],
) -> Outcome:
    """Asks every node once more what is left of the run; ends it where there is anything."""
    known = [name for name, end in state.ends.items() if end["state"] == "unreachable"]
    left = sweep(ctx, [link for link in links if link.node.name not in known], record, release=state.state != "failed")
    left |= dict.fromkeys(known)
    end = state.end(known, record.last.resume_step, record.last.started_unix, ended_unix)
    source = None
    if state.state == "failed" and end.node and end.kind != "node":
        log = f"rank_{end.rank}/attempt_{state.attempt}.log"
        if end.rank < 0:
            phase = "prepare" if end.kind in ("prepare", "config") else "torchrun"
            phase = Reason.SETUP if f": {Reason.SETUP}" in end.words else phase
            log = f"{phase}.attempt_{state.attempt}.log"
        source = (end.node, log)
    outcome = "failed" if end.kind == "notice" else state.state
    return Outcome(
        outcome, end.words, left, end, source, dict(state.leaving), state.saved, state.saved_unix, behind,
        tuple(name for name in known if name not in state.doubtful),
    )  # fmt: skip


def sweep(ctx: Context, links: Sequence[Link], record: Run, *, release: bool) -> dict[str, int | None]:
    """Processes of the run that are left on each node after everything was ended; None where nobody answers.

    With `release` what waits there for another attempt ends too.
    """

    message = {"grace_s": 0, "reason": "sweep", "release": release, "attempt": record.last.attempt}

    def one(link: Link) -> int | None:
        why = ""
        for again in range(SWEEP_TRIES):  # a shared connection that died while we slept is made anew by the next call
            try:
                return len(link.call("stop", record.run_dir(link.node.name), message=message)["left"])
            except NexaError as error:
                why = str(error)
                ctx.sleep(float(again))
        ctx.say(f"warning: {link.node.name}: cannot be proven clean: {why}")
        return None

    return by_node(links, one)


class _Stopper:
    """Stops all nodes from a thread of its own, so that their logs are read meanwhile."""

    def __init__(self, links: list[Link], record: Run) -> None:
        self.links, self.record = links, record
        self.threads: list[tuple[str, threading.Thread]] = []
        self.until = math.inf
        """By when the nodes have said that they ended."""
        self.over, self.deaf = threading.Event(), set[str]()
        """Nodes that could not be told to stop yet."""

    def hurry(self, state: AttemptState, awake: _Awake) -> None:
        """Gives up nodes that were told to stop (by us or by somebody else) and do not say that they did. One that
        cannot be told is waited for, since the line to it may be down; a person who stops a run need not wait."""
        if state.stopping and self.until == math.inf:
            self.until = time.monotonic() + NOTICE_GRACE_S + ENDED_S
        if time.monotonic() > self.until and awake.for_s() > ENDED_S:
            for name in set(state.nodes) - set(state.ends) - (self.deaf if state.stopping in OURS else set()):
                state.lost(name, "it was told to stop, and does not say that it did", "faulty")

    def start(self, reason: str, grace_s: float, after_s: float = 0) -> None:
        self.until = min(self.until, time.monotonic() + after_s + grace_s + ENDED_S)
        for link in self.links:
            thread = threading.Thread(target=self._stop, args=(link, reason, grace_s, after_s), daemon=True)
            self.threads.append((link.node.name, thread))
            thread.start()

    def _stop(self, link: Link, reason: str, grace_s: float, after_s: float) -> None:
        time.sleep(after_s)
        while not self.over.is_set():
            try:
                stop_all([link], self.record, reason, grace_s, release=reason not in OURS)
                self.deaf.discard(link.node.name)
                return
            except Unreachable:
                self.deaf.add(link.node.name)
            except NexaError:
                return  # the proof at the end names it
            self.over.wait(AGAIN_S)

    def join(self) -> None:
        self.over.set()
        for name, thread in self.threads:
            thread.join(0 if name in self.deaf else NOTICE_GRACE_S + 60)
