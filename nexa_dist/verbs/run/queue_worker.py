"""Begins the runs of a queue one after the other. What it is about to do is in the queue's file before it does it, so
another one goes on where it was killed: a run that was begun is followed, one that was not is begun."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexa_dist.config.load import recorded_train
from nexa_dist.errors import (
    EXIT_BUDGET,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STILL_RUNNING,
    NexaError,
    StillRunning,
)
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import lease
from nexa_dist.ops.money.budget import of_cluster
from nexa_dist.ops.next_run import NextRun
from nexa_dist.ops.queue import Queue, Row, settled
from nexa_dist.ops.runs import status as running
from nexa_dist.ops.runs.finish import finish_again
from nexa_dist.ops.runs.summary import start_times
from nexa_dist.ops.runs.wandb import settled as wandb_settled
from nexa_dist.plan.money.budget import OF_CLUSTER, RESERVE_S
from nexa_dist.plan.ranks import subset
from nexa_dist.run.ssh.connections import Ssh, Unreachable, connect, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact_text
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import Shown
from nexa_dist.verbs.run import queue_table
from nexa_dist.verbs.run.attach import taken_over
from nexa_dist.verbs.run.begin import fresh

MISSES = 2
"""Runs one after the other that could not be begun, after which the cluster is taken to be at fault."""


class Worker:
    """The one controller that begins the runs of a queue."""

    def __init__(self, ctx: Context, queue: Queue, cluster: Cluster, shown: Shown, picture: str | None) -> None:
        self.ctx, self.queue, self.cluster, self.shown, self.picture = ctx, queue, cluster, shown, picture
        self.ended_unix: float | None = None
        """Unix time at which the run before had ended on every node."""
        self.rows: list[Row] = []
        """Rows of the queue as they were last: the file goes when the nodes are given back."""
        self.failed = self.misses = 0
        self.next = NextRun(ctx, queue)

    def work(self) -> int:
        """Until nothing waits, or something says that it should. The queue then stays as it is."""
        with self.queue.worked(), contextlib.ExitStack() as connections:
            try:
                code = self._rows(connections)
            finally:
                self.next.take()
                self._tell()
        return code

    def _rows(self, connections: contextlib.ExitStack) -> int:
        ssh: Ssh | None = None
        while (row := self._next()) is not None:
            if ssh is None or ssh.cluster != self._now():
                ssh = self._connected(connections)
            try:
                code = self._one(ssh, row)
            except NexaError as error:
                self._not_begun(row, error)
                code = EXIT_FAILED
            except KeyboardInterrupt:
                self._settle(row)
                raise
            row = self._settle(row)
            if (end := self._ends(row, code)) is not None:
                return end
        return EXIT_FAILED if self.failed else EXIT_OK

    def _next(self) -> Row | None:
        """A run that was begun goes before those that wait; those of another workspace are for a nexa there."""
        self.rows = self.queue.load().rows
        mine = [row for row in self.rows if row.root == str(self.ctx.workspace.root)]
        return next((row for state in ("running", "waiting") for row in mine if row.state == state), None)

    def _now(self) -> Cluster:
        """The cluster with the nodes that it has now: one may have been replaced."""
        if self.queue.folder.json.exists():
            self.cluster = self.queue.folder.load()
        return self.cluster

    def _connected(self, connections: contextlib.ExitStack) -> Ssh:
        """Keep one connection for all runs, so that the next need not make it. Between two runs, too, the nodes are in
        use: an idle limit counts from the end of the queue."""
        connections.close()
        ssh = connections.enter_context(session(self.ctx.runner, self.cluster))
        if self.cluster.traits.clock:
            connections.enter_context(lease.in_use(lease.doors(ssh)))
        return ssh

    def _one(self, ssh: Ssh, row: Row) -> int:
        """Follows the run of a row to its end, from its beginning or from where another controller left it."""
        if (run := row.run) is not None:
            if settled(row).state != "running":  # it ended while nobody wrote that down
                self._finish_again(ssh, run)
                return EXIT_OK
            terminal.say(f"▸ {row.id}: going on with {row.run_id}")
            return taken_over(self.ctx, run, self.shown)
        ready = self.next.take(row.id)
        name = ready.folder.run_id if ready else row.run_id
        folder = RunFolder(Path(row.root) / "runs" / name) if name else None
        if folder and (row.state == "running" or not folder.path.exists()):  # of a launch that was killed
            shutil.rmtree(folder.path, ignore_errors=True)
            folder = None
        config = recorded_train(row.config, row.id)
        ssh = replace(ssh, cluster=subset(self.cluster, config.nodes))
        running.refuse_busy(self.ctx, ssh.cluster)
        row = self._put(row, state="running", run_id=name if folder else "", why="")
        terminal.say(f"▸ {row.id}: {' '.join([row.config_file, *(f'{k}={v}' for k, v in row.point.items())])}")
        self._warn_of_money(row)
        config = wandb_settled(self.ctx, config)
        try:
            return fresh.fresh(
                self.ctx, ssh, lambda: connect(ssh), config, row.config_file, self.shown,
                named=lambda run_id: self._put(row, run_id=run_id), folder=folder, code=self._code(row),
                began=lambda prepared: self.next.make_ready(config, prepared),
            )  # fmt: skip
        except BaseException:
            if ready:
                ready.forget(self.queue)
            raise

    def _finish_again(self, ssh: Ssh, run: RunFolder) -> None:
        try:
            record = run.load()
            nodes = [node for node in ssh.cluster.nodes if node.name in record.nodes]
            finish_again(self.ctx, run, connect(ssh, nodes), record)
        except NexaError as error:
            self.ctx.say(f"warning: what {run.run_id} left did not come: {error}; nexa pull {run.run_id} tries again")

    def _code(self, row: Row) -> fresh.Frozen | None:
        code = self.queue.code(row)
        return fresh.Frozen(code, row.git_commit) if code else None

    def _warn_of_money(self, row: Row) -> None:
        """Warn when the budget that is left looks small beside the runs so far; what does not even pay a stop is
        refused by the launch."""
        left = of_cluster(self.queue.folder, self.ctx.now(), self.cluster.usd_per_hour)
        took = [told["minutes"] for told in map(queue_table.of_row, self.queue.load().rows) if told["state"] == "done"]
        if left and took and left.seconds_left() - RESERVE_S < max(took) * 60:
            self.ctx.say(
                f"warning: {row.id} may not be paid to its end: {left.left_usd:.2f} USD of the {left.what} are left, "
                f"{left.seconds_left() / 60:.0f} min, and a run before it took {max(took):.0f} min"
            )

    def _put(self, row: Row, **fields: Any) -> Row:
        """The row with these fields, here and in the file, which is not made again when the nodes were given back."""
        made = replace(row, **fields)
        self.rows = [made if one.id == row.id else one for one in self.rows]
        return self.queue.update(made) if self.queue.path.exists() else made

    def _current(self, row: Row) -> Row:
        known = self.queue.load().rows or self.rows
        return next((one for one in known if one.id == row.id), row)

    def _settle(self, row: Row) -> Row:
        """Writes down what became of the run."""
        row = self._current(row)
        made = settled(row)
        if (run := made.run) is not None:
            if self.ended_unix and made.began_s is None and (times := start_times(run)):
                began_s, first_rank_s = (round(at - self.ended_unix, 2) for at in times)
                made = replace(made, began_s=began_s, first_rank_s=first_rank_s)
            self.ended_unix = run.load().last.ended_unix
        return self._put(made)

    def _not_begun(self, row: Row, error: NexaError) -> None:
        """A run that cannot be begun failed, and the next is tried; what keeps all of them from it is raised."""
        row = self._settle(row)
        passing = isinstance(error, (Unreachable, StillRunning)) or error.code == EXIT_BUDGET
        begun = row.state != "waiting"
        self.misses += 1
        if not begun and not passing and self.misses < MISSES:
            self._put(row, state="failed", why=redact_text(f"could not be begun: {error}"))
        elif row.state != "failed":
            if not begun:
                self._put(row, why=redact_text(str(error)))
            raise error
        terminal.error(redact_text(f"{row.id}: {error}"), redact_text(error.hint))

    def _ends(self, row: Row, code: int) -> int | None:
        """The exit code with which the queue stops here; None when the next begins."""
        if row.run is not None and row.state not in ("waiting", "failed"):
            self.misses = 0
        self.failed += row.state in ("failed", "stopped")
        if row.state == "running":
            return code  # it goes on without us
        if code == EXIT_STILL_RUNNING:
            return code
        end = row.run.load().last.end if row.run else None
        if row.state == "stopped" and end and end.kind == "stopped":
            return EXIT_INTERRUPTED
        if end and end.kind == "budget" and row.why.startswith(OF_CLUSTER):
            return EXIT_BUDGET
        return EXIT_FAILED if row.state in ("failed", "stopped") and self.queue.load().stop_on_failure else None

    def _tell(self) -> None:
        """The table, and what is left to do."""
        rows = self.queue.load().rows or self.rows
        shown = [queue_table.of_row(row) for row in rows]
        if self.shown.as_json:
            terminal.emit_line({"queue": shown})
        else:
            queue_table.rows_out(shown, False)
        gaps = [
            (row.began_s, row.first_rank_s) for row in rows if row.began_s is not None and row.first_rank_s is not None
        ]
        if gaps:
            began, ranks = (f"{min(times):.1f} to {max(times):.1f} s" for times in zip(*gaps, strict=True))
            self.ctx.say(
                f"from the end of a run: the next was launched after {began}, its first rank was after {ranks}"
            )
        if wait := [row.id for row in rows if row.state in ("waiting", "running")]:
            self.ctx.say(f"not over: {', '.join(wait)}; nexa queue run goes on with them")
        if self.picture:
            try:
                queue_table.draw(self.queue.folder.name, shown, Path(self.picture))
            except NexaError as error:
                self.ctx.say(f"warning: {error}")
