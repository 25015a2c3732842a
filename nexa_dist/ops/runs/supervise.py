"""A run to its end: its attempts one after the other, and what happens between them.

Everything decided is in run.json before it is done, so another `nexa attach` goes on where a killed one was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nexa_dist.config.load import recorded_train
from nexa_dist.errors import NexaError, NoNodes
from nexa_dist.model import Cluster, Decision, End, Kind
from nexa_dist.node.protocol import Reason
from nexa_dist.ops.context import Context
from nexa_dist.ops.health.witness import Witnesses
from nexa_dist.ops.notify.announcer import Announcer, Heard
from nexa_dist.ops.providers.table import is_off
from nexa_dist.ops.runs import checkpoints as resume
from nexa_dist.ops.runs import launch, replace_nodes, watch
from nexa_dist.ops.runs.code import tell_kept
from nexa_dist.ops.runs.finish import close, finish
from nexa_dist.ops.runs.watch import Choice, Outcome
from nexa_dist.ops.view import View
from nexa_dist.plan.money.budget import OF_CLUSTER, OF_RUN
from nexa_dist.plan.runs.notification import deadline_key
from nexa_dist.plan.runs.recovery import Nodes, Policy, decide
from nexa_dist.run.code import archive
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.ssh.connections import Link, Ssh, connect, on_all, reach, session
from nexa_dist.run.workspace import RunFolder

if TYPE_CHECKING:
    from nexa_dist.ops.money.meter import Meter


@dataclass
class Supervisor:
    """One run in the hands of one controller. `ssh` and `links` are those of the nodes that take part now."""

    ctx: Context
    run: RunFolder
    record: Run
    cluster: Cluster
    view: View
    on_interrupt: Callable[[], Choice]
    meter: Meter | None = None
    """Meter of the run, from the first attempt that is watched."""

    @functools.cached_property
    def announcer(self) -> Announcer:
        """Made by the first that has something to tell: a command that only looks on sends nothing."""
        return Announcer(self.ctx, self.run, self.record)

    def follow(self, ssh: Ssh, links: list[Link], detach: bool = False) -> Outcome | None:
        """Follow the run from an attempt that was started to the end of the run; None when the user left it alone."""
        with contextlib.ExitStack() as connections:
            return self._on(connections, ssh, links, detach)

    def resume(self, ssh: Ssh) -> Outcome | None:
        """Go on from where a controller died between two attempts to the end of the run."""
        last = self.record.ends[-1]
        links, silent = reach(ssh, self.cluster.nodes)
        doomed = self.record.last.next
        gone = doomed.nodes if doomed and doomed.action == "replace" else ()
        left = {node.name: None if node.name in {*silent, *gone} else 0 for node in self.cluster.nodes}
        with contextlib.ExitStack() as connections:
            known = Outcome("failed", last.words, left, last, leaving={name: {} for name in gone})
            relaunched = self.recover(connections, ssh, links, known)
            return relaunched if isinstance(relaunched, Outcome) else self._on(connections, *relaunched)

    def _on(
        self, connections: contextlib.ExitStack, ssh: Ssh, links: list[Link], detach: bool = False
    ) -> Outcome | None:
        from nexa_dist.ops.money.meter import Meter  # the ranks start meanwhile

        config = recorded_train(self.record.config, self.run.run_id)
        since = self.record.attempts[0].started_unix
        self.meter = Meter(self.ctx, self.cluster, config.budget_usd, since, self.view.note, self.run)
        self.meter.links, self.meter.warned = links, self.announcer.budget
        self.meter.start()
        view = Heard(self.view, self.announcer, self._dues(config.max_hours, self.meter))
        connections.callback(self.meter.close)
        while True:
            self._show()
            self.meter.cluster, self.meter.links = self.cluster, links
            with contextlib.suppress(NexaError):  # the meter tries again, and says so; but who detaches is gone by then
                self.meter.allow()
            outcome = watch.watch(
                self.ctx,
                self.run,
                links,
                self.record,
                view=view,
                on_interrupt=self.on_interrupt,
                witnesses=self._witnesses(ssh),
                spent=self.meter.look,
                detach=detach,
            )
            if outcome is None:
                return None
            outcome = close(self.run, self.record, outcome)
            relaunched = self.recover(connections, ssh, links, outcome)
            if isinstance(relaunched, Outcome):
                return relaunched
            ssh, links = relaunched

    def _dues(self, max_hours: float | None, meter: Meter) -> list[tuple[str, str, float, float]]:
        """Deadlines of the run and of its nodes, as `Heard` takes them."""
        by_hand, made = self.record.by_hand, self.cluster.created_unix
        since = next((row.started_unix for row in self.record.attempts if row.attempt >= by_hand), self.ctx.now())
        hours, ends = max_hours or 0.0, meter.clock.ends_unix
        own = [(deadline_key(by_hand), "max_hours", since + hours * 3600, hours * 3600)] if hours else []
        theirs = [(f"deadline:nodes:{ends:.0f}", "max_hours of the nodes", ends, ends - made)]
        return [*own, *(theirs if ends < float("inf") else [])]

    def _show(self) -> None:
        row = self.record.last
        self.view.attempt(row.attempt, list(row.ranks), row.world_size, row.resume_step, row.replaced)

    def recover(
        self, connections: contextlib.ExitStack, ssh: Ssh, links: list[Link], outcome: Outcome
    ) -> Outcome | tuple[Ssh, list[Link]]:
        """Recovers until another attempt runs, or the run is over."""
        ctx, config = self.ctx, recorded_train(self.record.config, self.run.run_id)
        policy = Policy(config.restarts_per_hour, config.min_nodes, config.wait_for_nodes_minutes * 60)
        whole = self.cluster
        lost = sorted({*self._proven(ssh, outcome, policy), *outcome.leaving})
        missing_since, refused, anew = ctx.now(), "", list[str]()
        # Nodes whose agent has just proven them clean: what is known of them still holds.
        sound = [link for link in links if outcome.left.get(link.node.name) is not None]
        first_look = True
        while True:
            fit = tuple(node.name for node in self.cluster.nodes if node.name not in lost)
            nodes = Nodes(fit, tuple(lost), replace_nodes.possible(ctx, whole), refused, ctx.now() - missing_since)
            left_s = self.seconds_left(config.max_hours)
            decision = self._out_of_money() or self._wish() or decide(self.record.ends, nodes, policy, left_s)
            self.record.decide(decision)
            if decision.action in ("done", "stop"):
                return self._over(links, outcome, decision)
            self.announcer.decided(decision)
            if first_look or decision.action != "wait":
                more = f" ({decision.why})" if decision.why != outcome.end.words else ""
                self.view.note(f"attempt {self.number} ended: {outcome.end.words}; next: {decision.action}{more}")
            first_look = False
            try:
                if decision.action == "wait":
                    self._pause(decision.after_s)
                    lost, refused = self._look(ssh, lost), ""
                elif decision.action == "replace":
                    ssh, links = self._replace(connections, ssh, links, decision)
                    sound = [link for link in sound if link.node.name not in decision.nodes]
                    anew += decision.nodes
                    lost = []
                else:
                    self._pause(decision.after_s)
                    if decision.action == "shrink":
                        self.cluster, lost = replace_nodes.without(self.cluster, lost), []
                    return self._relaunch(connections, ssh, sound, anew, outcome.saved)
            except NoNodes as error:
                stop = Decision("stop", str(error))
                self.record.decide(stop)
                end = dataclasses.replace(outcome.end, kind="stopped", words=stop.why)
                return self._over(links, dataclasses.replace(outcome, state="stopped", end=end), stop)
            except NexaError as error:
                ctx.say(f"warning: {error}")
                sound = []
                if decision.action == "replace":
                    refused = str(error)
                    continue
                silent = self._look(ssh, [node.name for node in self.cluster.nodes])
                before, lost = lost, self._witnesses(ssh).settle(silent, self._no_more)
                if not lost or before == lost:
                    self._failed_start(error)
                    outcome = Outcome("failed", str(error), outcome.left, self.record.ends[-1])
            except KeyboardInterrupt:
                self._left(decision)
                raise

    def _witnesses(self, ssh: Ssh) -> Witnesses:
        limit_s = recorded_train(self.record.config, self.run.run_id).lost_after_s
        return Witnesses(self.ctx, ssh, self.cluster.nodes, self.view.note, limit_s)

    def _proven(self, ssh: Ssh, outcome: Outcome, policy: Policy) -> list[str]:
        """Lost nodes among those that do not answer. The others are waited for, and cleaned when they are back; and
        before a machine is ended it is asked once more."""
        silent = [name for name, left in outcome.left.items() if left is None and name not in outcome.leaving]
        fit = Nodes(tuple(node.name for node in self.cluster.nodes))
        if not silent or decide(self.record.ends, fit, policy).action in ("done", "stop") or self._no_more():
            return silent
        self.record.decide(Decision("wait", f"{', '.join(silent)} may come back", tuple(silent)))
        self.view.note(f"attempt {self.number} ended: {outcome.end.words}; asking after {', '.join(silent)}")
        witnesses = self._witnesses(ssh)
        called = [name for name in silent if name in outcome.lost]
        lost = [*called, *witnesses.settle([name for name in silent if name not in called], self._no_more)]
        lost = sorted({*lost} - {*witnesses.last_word(lost)})
        back = [node for node in self.cluster.nodes if node.name in silent and node.name not in lost]
        outcome.left.update(watch.sweep(self.ctx, reach(ssh, back)[0], self.record, release=False))
        return lost

    def _no_more(self) -> bool:
        """Tell whether there is nothing to wait for, after a short wait."""
        self._pause(0.5)
        left_s = self.seconds_left(recorded_train(self.record.config, self.run.run_id).max_hours)
        return bool(self._wish() or self._out_of_money()) or (left_s is not None and left_s <= 0)

    @property
    def number(self) -> int:
        return self.record.last.attempt

    def seconds_left(self, max_hours: float | None) -> float | None:
        """Seconds left of the run's own deadline, which all attempts share."""
        if max_hours is None:
            return None
        return self.record.attempts[0].started_unix + max_hours * 3600 - self.ctx.now()

    def _wish(self) -> Decision | None:
        """Find the wish of somebody who asked the run to end while no agent was there to be told."""
        if not self.run.stop_wish.exists() or self.record.last.state == "completed":
            return None
        return Decision("stop", self.run.stop_wish.read_text(encoding="utf-8").strip() or Reason.STOPPED)

    def _out_of_money(self) -> Decision | None:
        """Another attempt is not worth its start."""
        why = self.meter.out() if self.meter else ""
        return Decision("stop", why) if why and self.record.last.state != "completed" else None

    def _pause(self, seconds: float) -> None:
        until = self.ctx.now() + seconds
        while self.ctx.now() < until and not self.run.stop_wish.exists():
            self.view.tick()
            self.ctx.sleep(min(0.5, max(0.0, until - self.ctx.now())))

    def _look(self, ssh: Ssh, names: list[str]) -> list[str]:
        """Nodes that do not answer now, of those that did not."""
        silent = []
        for node in self.cluster.nodes:
            if node.name in names:
                try:
                    connect(ssh, [node])
                except NexaError:
                    silent.append(node.name)
        return silent

    def _replace(
        self, connections: contextlib.ExitStack, ssh: Ssh, links: list[Link], decision: Decision
    ) -> tuple[Ssh, list[Link]]:
        """Copy what a leaving node has to one that stays, then make the lost nodes anew."""
        names = decision.nodes
        resume.rescue(self.ctx, links, self.record, names)
        self.cluster = replace_nodes.make_anew(self.ctx, self.cluster, names)
        self.record.decide(decision, self.cluster)
        self.announcer.replaced(names, decision.why)
        ssh = connections.enter_context(session(self.ctx.runner, self.cluster))
        return ssh, [link for link in links if link.node.name not in names]

    def _relaunch(
        self, connections: contextlib.ExitStack, ssh: Ssh, sound: list[Link], anew: list[str], saved: int | None
    ) -> tuple[Ssh, list[Link]]:
        """The next attempt on the cluster as it is, with the code of the last one, from the newest whole checkpoint.

        `sound` are links that can be used again; `saved` is the newest checkpoint that rank 0 told of.
        """
        if ssh.cluster != self.cluster:
            ssh = connections.enter_context(session(self.ctx.runner, self.cluster))
        config = recorded_train(self.record.config, self.run.run_id)
        known = {link.node: link for link in sound}
        links = on_all(self.cluster.nodes, lambda node: known.get(node) or connect(ssh, [node])[0])
        found = resume.spread_checkpoint(self.ctx, links, self.record, saved=saved)
        hashes = (self.record.code_hash, self.record.package_hash)
        codes = tuple(archive.Kept(self.run.code / f"{name}.tar.gz") for name in hashes)
        prepared = launch.prepare(
            self.ctx,
            ssh,
            config,
            self.run.run_id,
            self.number + 1,
            found,
            codes=(codes[0], codes[1]),
            seconds_left=self.seconds_left(config.max_hours),
            kept=self.run.brought,
            links=lambda: links,
        )
        launch.deliver(self.ctx, prepared)
        launch.start(self.run, prepared, self.record, replaced=anew)
        tell_kept(self.ctx, self.record.last)
        return ssh, list(prepared.links)

    def _failed_start(self, error: NexaError) -> None:
        """An attempt that did not get as far as its ranks counts as one, so that it is not tried for ever."""
        row, now = self.record.last, time.time()
        fresh = None
        if row.end:
            row = fresh = Attempt(row.attempt + 1, "failed", now, row.world_size, "", ranks=row.ranks,
                                  hardware=row.hardware)  # fmt: skip
        end = End("start", f"could not be started: {error}", started_unix=row.started_unix, ended_unix=now)
        self.record.close("failed", end.words, end, unwritten=fresh)

    def _left(self, decision: Decision) -> None:
        """We go between two attempts: an attempt whose start that has undone is no end of the run, nor a failure of
        its program."""
        row = self.record.last
        if row.end is None:
            end = End("node", f"left {launch.BEFORE}", started_unix=row.started_unix, ended_unix=time.time())
            self.record.close(row.state, row.cause, end, next=decision)

    def _over(self, links: list[Link], outcome: Outcome, decision: Decision) -> Outcome:
        """Ends what waited for another attempt, and writes the manifest."""
        left = dict(outcome.left)
        if outcome.state == "failed":
            left |= watch.sweep(self.ctx, [k for k in links if left.get(k.node.name) is not None], self.record,
                                release=True)  # fmt: skip
        for node in self.cluster.nodes:
            if node.name in left and left[node.name] is None and is_off(self.ctx, self.cluster, node):
                self.ctx.detail(f"{node.name}: its machine is off, so nothing is left there")
                left[node.name] = 0
        cause = outcome.cause if decision.action == "done" or not decision.why else decision.why
        ended = dataclasses.replace(outcome, cause=cause, left=left)
        if cause.startswith((OF_CLUSTER, OF_RUN)) or (cause == Reason.STOPPED and outcome.state == "failed"):
            kind: Kind = "stopped" if cause == Reason.STOPPED else "budget"
            ended = dataclasses.replace(
                ended, state="stopped", end=dataclasses.replace(outcome.end, kind=kind, words=cause)
            )
        finish(self.ctx, self.run, links, self.record, ended)
        self.announcer.ended(ended.state, ended.cause)
        return ended


@contextlib.contextmanager
def alone(run: RunFolder, verb: str) -> Iterator[bool]:
    """True when we supervise the run; false when another living command does, and we may only look on."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(run.locked(verb))
        except NexaError:
            yield False
            return
        yield True
