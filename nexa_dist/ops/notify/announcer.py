"""Announcer of a run: hears what its supervisor and its nodes tell, and puts the messages into the outbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nexa_dist.model import Decision
from nexa_dist.node.protocol import Event
from nexa_dist.ops.context import Context
from nexa_dist.ops.notify.outbox import Outbox, close_at_exit
from nexa_dist.ops.notify.targets import of_run
from nexa_dist.ops.view import View
from nexa_dist.plan.money.budget import Budget
from nexa_dist.plan.money.cost import cost_usd
from nexa_dist.plan.runs.notification import Subject, near
from nexa_dist.run.record import Run
from nexa_dist.run.workspace import RunFolder

SETTLE_S = 3.0
"""Seconds before a message about what a node said goes out: its agent may have sent it while nobody followed, and says
so a little later in the same log."""


class Announcer:
    """One for each command that decides about a run. `record` is the run's, as it changes."""

    def __init__(self, ctx: Context, run: RunFolder, record: Run) -> None:
        self.ctx, self.record = ctx, record
        self.outbox = Outbox(run, of_run(ctx, run), ctx.runner)

    def about(self) -> Subject:
        """The run as it is now, with what its attempts have cost."""
        now, rows = self.ctx.now(), self.record.attempts
        seconds = sum((row.ended_unix or now) - row.started_unix for row in rows)
        number = rows[-1].attempt if rows else 0
        usd = cost_usd(self.record.cluster, seconds)
        return Subject(self.record.run_id, self.record.cluster.name, number, usd, now)

    def decided(self, decision: Decision) -> None:
        """An attempt failed and the run goes on; one that ends with it is told as the end of the run."""
        last = self.record.last
        if last.end and last.end.kind not in ("completed", "stopped"):
            self.outbox.put(self.about().failed(last.cause, last.why or "", decision), SETTLE_S)

    def ended(self, state: str, cause: str) -> None:
        self.outbox.put(self.about().ended(state, cause, self.record.last.why or "" if state == "failed" else ""))

    def replaced(self, names: Sequence[str], why: str) -> None:
        self.outbox.put(self.about().replaced(names, why))

    def budget(self, budget: Budget, share: float, words: str) -> None:
        self.outbox.put(self.about().budget(budget, share, words))

    def close(self, say: Callable[[str], None]) -> None:
        """Lets the outbox go on by itself; `say` tells at the end of this command what could not be sent."""
        close_at_exit(self.outbox, say)

    def say(self) -> None:
        while self.outbox.said:
            self.ctx.say(self.outbox.said.popleft())


class Heard:
    """A view that hands on all it gets, and tells the announcer what somebody has to know of."""

    def __init__(self, view: View, announcer: Announcer, dues: Sequence[tuple[str, str, float, float]]) -> None:
        """`dues`: key, name, unix time and whole seconds of each deadline."""
        self.view, self.announcer, self.dues = view, announcer, list(dues)
        self.line, self.quiet, self.note, self.attempt = view.line, view.quiet, view.note, view.attempt

    def event(self, node: str, record: Mapping[str, Any]) -> None:
        self.view.event(node, record)
        if record["event"] == Event.TOLD and record.get("sent"):
            self.announcer.outbox.told_by_node(str(record["key"]))
        elif record["event"] == Event.NOTICE:
            self.announcer.outbox.put(self.announcer.about().notice(node, record), SETTLE_S)

    def tick(self) -> None:
        self.view.tick()
        self.announcer.say()
        now = self.announcer.ctx.now()
        for due in [due for due in self.dues if now > due[2] - near(due[3])]:
            self.dues.remove(due)
            self.announcer.outbox.put(self.announcer.about().deadline(*due[:3]), SETTLE_S)
