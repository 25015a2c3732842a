"""Presenter of a run from its first attempt to its end, and of its last words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from nexa_dist.errors import EXIT_BUDGET, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STILL_RUNNING, NexaError
from nexa_dist.model import ACTIVE, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import logs as logging
from nexa_dist.ops.runs import watch
from nexa_dist.ops.runs.summary import summary
from nexa_dist.ops.runs.supervise import Supervisor
from nexa_dist.run.logs.mirror import log_tail
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, Ssh, reach
from nexa_dist.run.workspace import RunFolder
from nexa_dist.ui import run_view, terminal
from nexa_dist.ui.run_view.state import State
from nexa_dist.verbs._shared import Shown


class RunPresenter:
    """Shows a run, and says how it ended; the exit code says it too."""

    def __init__(self, ctx: Context, folder: RunFolder, record: Run, shown: Shown, *, began: bool = False) -> None:
        """`began`: this command started the attempt, it has not only come to see it."""
        self.folder, self.record, self.shown, self.began = folder, record, shown, began
        self.looks_on = False
        started_unix = record.attempts[0].started_unix if record.attempts else ctx.now()
        # A program that only starts a run wants one answer, not what happens until then.
        kind: run_view.Kind = "auto" if not shown.as_json else "none" if shown.detach else "json"
        state = State(folder.run_id, record.cluster.usd_per_hour, started_unix)
        self.view = run_view.view(kind, state, shown.ranks)
        self.ctx = dataclasses.replace(ctx, say=self.view.note)
        self.supervisor = Supervisor(self.ctx, folder, record, record.cluster, self.view, self._interrupted)

    def follow(self, ssh: Ssh, links: list[Link]) -> int:
        return self._told(lambda: self.supervisor.follow(ssh, links, self.shown.detach))

    def recover(self, ssh: Ssh) -> int:
        return self._told(lambda: self.supervisor.resume(ssh))

    def look_on(self) -> int:
        """Shows the lines only; another command decides."""
        self.looks_on = True
        try:
            logging.look_on(self.ctx, self.folder, self.view)
        except KeyboardInterrupt:
            return self.left(EXIT_INTERRUPTED)
        finally:
            self.view.close()
        return EXIT_OK

    def _told(self, work: Callable[[], watch.Outcome | None]) -> int:
        try:
            return self._shown(work)
        finally:  # a webhook that is slow keeps nothing waiting: neither a teardown nor the next run of a queue
            self.supervisor.announcer.close(terminal.say)

    def _shown(self, work: Callable[[], watch.Outcome | None]) -> int:
        try:
            outcome = work()
        except KeyboardInterrupt:
            return self.left(EXIT_INTERRUPTED)
        finally:
            self.view.close()
        if outcome is None:
            return self.left(EXIT_OK)
        ctx = dataclasses.replace(self.ctx, say=terminal.say)
        code = told(ctx, self.folder, outcome, self.shown.as_json)
        from nexa_dist.ops.runs.end_policy import carry_out  # a run is launched sooner without it

        carry_out(ctx, self.supervisor.cluster, outcome)
        return code

    def left(self, code: int) -> int:
        """Say what becomes of the run without us."""
        self.view.close()
        run, record = self.folder.run_id, self.folder.load()
        state = "recovering" if record.pending else record.last.state
        if state == "recovering" and not self.looks_on:
            terminal.say(
                f"between two attempts: nothing is started again until nexa attach {run}; end it: nexa stop {run}"
            )
        elif state in ("recovering", *ACTIVE):
            terminal.say(f"{self._goes_on}. Follow it: nexa attach {run}; end it: nexa stop {run}")
        else:
            terminal.say(f"{run} has ended: {state}")
        if self.shown.as_json:
            terminal.emit_line({"run": run, "state": "running" if state in ACTIVE else state})
        return code

    @property
    def _goes_on(self) -> str:
        kill = self.record.config.get("on_disconnect") == "kill" and not self.looks_on
        return "the nodes end it soon: on_disconnect is kill" if kill else "the run goes on"

    def _interrupted(self) -> watch.Choice:
        """Ask at Ctrl-C: a command that only looks ends nothing, and one that began the run ends it at a terminal only
        on a yes."""
        if not terminal.interactive():
            return "stop" if self.began else "detach"
        with self.view.paused():
            answer = terminal.choose("interrupted.", {"d": f"detach ({self._goes_on})", "s": "stop it"}, "d")
        return "stop" if answer == "s" else "detach"


def links_to(ssh: Ssh, nodes: Sequence[Node]) -> list[Link]:
    """Links to the nodes of an attempt. One that does not answer is followed all the same: it may come back."""
    links, silent = reach(ssh, nodes)
    if not links:
        hint = (
            "is it this machine's own line? A run goes on by itself under its deadline; try again when the line is back"
        )
        raise NexaError("no node answers: " + "; ".join(silent.values()), hint=hint)
    known = {link.node.name: link for link in links}
    return [known.get(node.name) or Link(ssh, node, links[0].home) for node in nodes]


def told(ctx: Context, folder: RunFolder, outcome: watch.Outcome, as_json: bool) -> int:
    """The last words about an attempt."""
    row = summary(folder)
    if outcome.failed_source:
        node, source = outcome.failed_source
        said = log_tail(folder.logs / node / source, 16384).decode(errors="replace")
        for line in said.splitlines()[-20:]:
            ctx.say(f"  {terminal.plain(line)}")
    sign = "✓" if outcome.state == "completed" else "✗"
    why = f": {outcome.cause}" if outcome.cause else ""
    ctx.say(f"{sign} {folder.run_id} {outcome.state}{why}")
    if known := folder.load().last.why:
        ctx.say(f"  why: {terminal.plain(known)} (nexa why {folder.run_id})")
    ctx.say(f"  {row['minutes']} min, {row['gpu_hours']} GPU-hours, {row['cost_usd']:.2f} USD")
    near = ctx.workspace.near
    ctx.say(f"  manifest {near(folder.manifest)}, logs {near(folder.logs)}")
    unknown = [name for name, count in outcome.left.items() if count is None]
    left = {name: count for name, count in outcome.left.items() if count}
    ctx.say(
        "  processes left: "
        + ", ".join(f"{name} {count if count is not None else 'unknown'}" for name, count in outcome.left.items())
    )
    if as_json:
        terminal.emit_line({**row, "cause": outcome.cause, "left": outcome.left, "manifest": str(folder.manifest)})
    if unknown or left:
        terminal.error(
            f"not proven clean: {', '.join([*unknown, *left])}", f"nexa stop {folder.run_id} once they answer again"
        )
        return EXIT_STILL_RUNNING
    if outcome.state == "stopped":
        return EXIT_BUDGET if outcome.end.kind in ("deadline", "budget") else EXIT_INTERRUPTED
    return EXIT_OK if outcome.state == "completed" else EXIT_FAILED
