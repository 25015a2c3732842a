"""The agent's watch over an attempt: progress, hangs, the controller, the cloud, the machine's clock."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from ..oslib import PAID, event, read_json
from ..protocol import Event, Reason, Spec
from ..rank import prepare_folder
from ..record import Record
from . import flight, stack_dump
from . import hang as watch_hang
from .controller_lease import Contact
from .log_index import EVERY_S, Times
from .machine_deadline import Due
from .scheduler import Scheduler

LOOK_S = 0.4
PROGRESS_S = 1.0
WARM_AFTER_S = 20.0
NOTICE_MARGIN_S = 15.0


class Watcher:
    """Writes events and answers with a reason to end the attempt; ends nothing itself."""

    def __init__(self, run_dir: str, spec: Spec, environment: dict[str, str]) -> None:
        self.run_dir, self.spec, self.environment = run_dir, spec, environment
        watch_hang.forget(run_dir)
        flight.forget(run_dir)
        self.record, self.times = Record(run_dir, spec["attempt"]), Times(run_dir, spec["attempt"])
        self.contact = Contact(run_dir) if spec.get("on_disconnect") == "kill" else None
        self.stall = watch_hang.Stall(spec.get("hang_timeout_s"))
        self.poller = self._poller() if spec.get("spot") else None
        self.scheduler = Scheduler.here()
        self.due = Due()
        self.grace_s: float | None = None
        """Once the cloud or the machine has given notice: what is left of it for a checkpoint."""
        self.notice: dict[str, Any] | None = None
        """Fields of the cloud's notice."""
        self.leaves_unix: float | None = None
        self.running = False
        """The ranks have been started."""
        self.reports: dict[int, dict[str, Any]] = {}
        self.told: dict[str, Any] = {}
        self.next_look = self.next_progress = self.next_index = 0.0
        self.warm_at: float | None = None
        self.warmed = False

    def _poller(self) -> Any:
        from .spot import BASE, Poller

        poller = Poller(self.environment.get("NEXA_IMDS") or BASE)
        poller.start()
        return poller

    def look(self, now: float) -> str:
        """`now` is boot_clock(). "hang", another reason to stop, or ""."""
        reason = self._cloud() or self._machine(now)
        if now < self.next_look:
            return reason
        self.next_look = now + LOOK_S
        if now >= self.next_index:
            self.next_index = now + EVERY_S
            self.times.note()
        if self.contact and self.contact.lost(now):
            reason = reason or Reason.DISCONNECTED
        paid = read_json(os.path.join(self.run_dir, PAID))
        if type(paid) in (int, float) and now > paid:
            reason = reason or Reason.BUDGET
        if self.running:
            self.record.read()
            hang = self._ranks(now)
            self._warm(now)
            reason = reason or (Reason.HANG if hang else "")
        return reason

    def _cloud(self) -> str:
        while self.poller and self.poller.news:
            name, fields = self.poller.news.popleft()
            event(self.run_dir, name, **fields)
            if name == Event.NOTICE:
                return self._noticed(fields)
        found = self.scheduler.look() if self.scheduler and self.notice is None else None
        return self.give_notice(found) if found else ""

    def give_notice(self, fields: dict[str, Any]) -> str:
        """Write down that the node is taken back, once: {"action", "at_unix", "seen_unix"}."""
        if self.notice is None:
            event(self.run_dir, Event.NOTICE, **fields)
            self._noticed(fields)
        return Reason.NOTICE

    def _noticed(self, fields: dict[str, Any]) -> str:
        self.notice = fields
        self._leave_by(fields["at_unix"])
        return Reason.NOTICE

    def _machine(self, now: float) -> str:
        fields = self.due.look(now)
        if fields is None:
            return ""
        event(self.run_dir, Event.DUE, **fields)
        self._leave_by(fields["acts_unix"])
        return Reason.DEADLINE

    def _leave_by(self, acts_unix: float) -> None:
        self.leaves_unix = acts_unix
        left_s = acts_unix - time.time() - NOTICE_MARGIN_S
        self.grace_s = max(0.0, min(float(self.spec.get("notice_grace_s", self.spec["grace_s"])), left_s))

    def _ranks(self, now: float) -> bool:
        self.reports = watch_hang.read_all(self.run_dir, self.reports)
        if now >= self.next_progress:
            self._tell_progress()
            self.next_progress = now + PROGRESS_S
        gone = {e["rank"] for e in self.record.exits}
        return self.stall.step(now, self.steps(), gone | watch_hang.through(self.reports))

    def steps(self) -> dict[int, int]:
        return {rank: report["step"] for rank, report in self.reports.items()}

    def _tell_progress(self) -> None:
        fields = watch_hang.fields(self.reports)
        if self.reports and fields != self.told:
            self.told = fields
            event(self.run_dir, Event.PROGRESS, **fields)

    def ask_flight(self) -> None:
        frozen = {r for r, pid in self.record.pids.items() if stack_dump.state_of(pid) in ("T", "t")}
        flight.ask(self.run_dir, frozen, hold_s=flight.OTHERS_S if self.spec.get("nnodes", 1) > 1 else 0.0)

    def tell_hang(self) -> None:
        """The event, then the stacks of every rank into its own log; the ranks end by it."""
        gone = {e["rank"] for e in self.record.exits}
        pids = {rank: pid for rank, pid in self.record.pids.items() if rank not in gone}
        states = {rank: stack_dump.state_of(pid) for rank, pid in pids.items()}
        steps, stalled_s = self.steps(), round(self.stall.stalled_s, 1)
        event(
            self.run_dir, Event.HANG, ranks=watch_hang.stuck(steps, states), stalled_s=stalled_s,
            steps={str(r): s for r, s in sorted(steps.items())}, states={str(r): s for r, s in sorted(states.items())},
        )  # fmt: skip
        why = "hang: no step for %.0f s, the slowest rank of this node is at step %s" % (stalled_s, self.stall.slowest)
        logs = {r: prepare_folder(self.run_dir, r, self.spec["attempt"])[1] for r in pids}
        stack_dump.dump({logs[r]: pid for r, pid in pids.items()}, why)

    def living(self) -> list[int]:
        """Pids of the ranks that were started and have not told how they ended."""
        self.record.read()
        gone = {e["rank"] for e in self.record.exits}
        return [pid for rank, pid in self.record.pids.items() if rank not in gone]

    def all_exited(self) -> bool:
        """Every rank that was started has told how it ended."""
        self.record.read()
        return set(self.record.pids) <= {e["rank"] for e in self.record.exits}

    def _warm(self, now: float) -> None:
        """Makes an interpreter for the next attempt ready, once, when the ranks work."""
        self.warm_at = now + WARM_AFTER_S if self.warm_at is None else self.warm_at
        if self.warmed or not self.spec.get("keep_warm") or not (self.reports or now >= self.warm_at):
            return
        self.warmed = True
        ensure_warm(self.spec, self.environment, self.run_dir)

    def finish(self) -> None:
        """Do what the last ticks had no time for."""
        if self.running:
            self.reports = watch_hang.read_all(self.run_dir, self.reports)
            self._tell_progress()
            flight.tell(self.run_dir, self.spec["attempt"])
        self.times.note()


def ensure_warm(spec: Spec, environment: dict[str, str], run_dir: str) -> None:
    from ..warm import client as warm_client

    try:
        warm_client.ensure(spec, environment, run_dir)
    except OSError as error:  # the run goes on; only a start will take longer
        print("warm interpreter: %s" % error, file=sys.stderr)


def release_warm(run_dir: str) -> None:
    if os.path.exists(os.path.join(run_dir, "warm.json")):
        from ..warm import client as warm_client

        warm_client.release(run_dir)
