"""The daemon: one attempt on this node, from `started` to `ended`."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from .code import tree as code_tree
from .machine import cgroup, container
from .machine.processes import kill_run, remove_tmp
from .oslib import (
    POLL_S,
    ROOM,
    agent_path,
    boot_clock,
    children_of,
    die_with_parent,
    event,
    inherited,
    read_json,
    set_subreaper,
    start_time,
    write_json,
)
from .protocol import HEARTBEAT_S, Event, Reason, Spec
from .record import Record
from .watch import tell, watcher

GO_TIMEOUT_S = 3600.0
GO_POLL_S = 0.01
"""The ranks of all nodes begin at once: here a delay is a delay of the launch."""
STACKS_S = 15.0
"""Time for the stacks of ranks that hang, which end by it: a busy node takes a while. Only what lives on costs it."""
RESERVE_BYTES = 65536
RESERVE_S = 1.0
"""Time for a child to say that its own has run out."""
PEERS_S = 2.0
"""Seconds between two looks at what the agents of all nodes have written."""
PEER_GRACE_S = 5.0
"""Seconds for ranks whose peers failed: they wait in a collective, and have nothing to save."""
OBEYED = (0, signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes and signals of ranks that ended well, or because they were told to."""


class Attempt:
    """Starts the preparation and the ranks, and ends them when asked, late, alone, or given notice."""

    def __init__(self, run_dir: str, spec: Spec, secrets: dict[str, str], notify: dict[str, Any] | None = None) -> None:
        self.run_dir, self.spec = run_dir, spec
        # Libraries leave files in the temporary folder when they are killed. This one goes with the attempt; its
        # path is short, since Unix sockets in it may have about 100 bytes. Noted first: a kill leaves nothing unknown.
        self.tmp = os.path.join(tempfile.gettempdir(), "nexa-run-" + os.urandom(4).hex())
        write_json(os.path.join(run_dir, "tmp.json"), self.tmp)
        os.mkdir(self.tmp, 0o700)
        self.environment = {**inherited(spec.get("path", [])), "TMPDIR": self.tmp, **spec["env"], **secrets}
        self.group = cgroup.make(run_dir)
        self.stop_reason = ""
        self.asked_at: float | None = None
        """Time of the first request to stop, by boot_clock()."""
        left_s = spec.get("deadline_in_s")
        self.deadline = boot_clock() + left_s if left_s else None
        self.beat = 0.0
        self.watcher = watcher.Watcher(run_dir, spec, self.environment)
        self.teller = tell.Teller(run_dir, spec, notify)
        self.hung_until: float | None = None
        self.child: Any = None
        self.held = "peers" in spec or self.watcher.scheduler is not None
        """True under a scheduler, which may signal every process of its job's step."""
        self.watched = [Record(path, spec["attempt"]) for path in (run_dir, *spec["peers"])] if "peers" in spec else []
        """Where no controller stops the others, when a rank of one has failed."""
        self.looked = 0.0
        self.asked: set[int] = set()
        """Ranks that got SIGTERM."""

    def main(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.signalled())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        set_subreaper()
        self.hold_room()
        state, code, why = "failed", 1, ""
        try:
            state, code, why = self.phases()
        except Exception as error:  # whatever it is: the processes of the run must not be left alone
            traceback.print_exc()
            why = "agent: %s" % (error or type(error).__name__)
        keep = self.keeps_warm(state)
        if not keep:
            watcher.release_warm(self.run_dir)
        _, left = kill_run(self.run_dir, warm=not keep)
        self.watcher.finish()
        if self.spec.get("outputs"):
            self.keep_outputs(state, why)
            _, left = kill_run(self.run_dir, warm=not keep)
        remove_tmp(self.run_dir)
        self.hold_room(False)
        end = {"state": state, "code": code, "reason": why, "left": left, "attempt": self.spec["attempt"]}
        while not self.event(Event.ENDED, **end) and os.path.isdir(self.run_dir):
            time.sleep(1)  # without room for this line the attempt would look lost; `stop` ends the wait

        self.tell_end(state, why)

    def tell_end(self, state: str, why: str) -> None:
        """Tell of the end where no controller hears it; one that somebody asked for is known to them."""
        signal.signal(signal.SIGTERM, tell.leave)
        if not self.request():
            failed = next((e for e in self.watcher.record.read().exits if e["code"] or e["signal"]), None)
            how = failed and ("signal %d" % failed["signal"] if failed["signal"] else "exit code %d" % failed["code"])
            self.teller.end(boot_clock(), state, why, "rank %d: %s" % (failed["rank"], how) if failed else "")
            self.teller.linger(boot_clock)

    def keep_outputs(self, state: str, reason: str) -> None:
        """Outputs of the attempt to the bucket, as far as there is time. The machine is watched meanwhile."""
        from . import keep

        def left_s() -> float:
            leaves = self.watcher.leaves_unix
            leaves_s = None if leaves is None else leaves - time.time()
            return keep.seconds(
                self.run_dir, state, self.stop_reason or reason, self.asked_at, self.grace_s(), leaves_s
            )

        self.watcher.running = False  # the ranks are through
        seconds = left_s()
        if seconds <= 0:
            return
        until, before = boot_clock() + seconds, self.stop_reason
        with contextlib.suppress(OSError), open(self.path("outputs") + ".log", "ab") as log:
            child = self.popen([sys.executable, "-S", "-E", agent_path(), "kept", self.run_dir, "%.1f" % seconds], log)
            while child.poll() is None and boot_clock() < until + RESERVE_S:
                if self.stop_reason != before:
                    before, until = self.stop_reason, min(until, boot_clock() + max(0.0, left_s()))
                self.tick()
                self.reap(child)

    def keeps_warm(self, state: str) -> bool:
        """Tell whether to expect another attempt, for which the warm interpreter stays."""
        request = self.request()
        return bool(self.spec.get("keep_warm")) and (not request.get("release", True) if request else state == "failed")

    def hold_room(self, hold: bool = True) -> None:
        """Hold some bytes of the disk back for the last event of an attempt that fills it."""
        path = os.path.join(self.run_dir, ROOM)
        with contextlib.suppress(OSError):
            if hold:
                with open(path, "wb") as file:
                    file.write(b"\0" * RESERVE_BYTES)
            else:
                os.unlink(path)

    def event(self, name: str, **fields: Any) -> bool:
        return event(self.run_dir, name, **fields)

    def phases(self) -> tuple[str, int, str]:
        """(state, exit code, reason) of the attempt."""
        ours = [sys.executable, "-S", "-E", agent_path(), "setup", self.run_dir] if self.spec.get("setup") else []
        for phase, argv in ((Event.SETUP, ours), (Event.PREPARE, self.spec.get("prepare"))):
            if not argv:
                continue
            code = self.run_child(phase, functools.partial(self.popen, argv))
            if self.stop_reason:
                return "stopped", code, self.stop_reason
            if code:
                failed = "%s: exit code %d" % (Reason.SETUP, code)
                why = read_json(self.path(phase), {}).get("why", failed) if phase == Event.SETUP else Reason.PREPARE
                return "failed", code, why
            if phase == Event.SETUP and self.spec.get("keep_warm"):  # there was no interpreter of a layer before
                watcher.ensure_warm(self.spec, self.environment, self.run_dir)
        self.event(Event.PREPARED, go=os.path.exists(self.path("go")))
        waited_until = boot_clock() + GO_TIMEOUT_S
        while not os.path.exists(self.path("go")) and not self.stop_reason:
            if boot_clock() > waited_until:
                return "failed", 1, "no node sent 'go' within %d s" % GO_TIMEOUT_S
            self.tick(GO_POLL_S)
        if self.stop_reason:
            return "stopped", 143, self.stop_reason
        code = self.run_child(Event.TORCHRUN, self.start_ranks)
        if self.hung_until is not None:
            return "failed", code or 1, Reason.HANG
        if self.stop_reason:
            return "stopped", code, self.stop_reason
        return ("completed", 0, "") if code == 0 else ("failed", code, Reason.TORCHRUN)

    def path(self, name: str) -> str:
        return os.path.join(self.run_dir, "%s.attempt_%d" % (name, self.spec["attempt"]))

    def request(self) -> dict[str, Any]:
        found = read_json(self.path("stop"), {})
        return found if isinstance(found, dict) else {}

    def grace_s(self) -> float:
        """Read again each time: a second, shorter request must not wait for the first one's grace."""
        noticed = self.watcher.grace_s
        asked = self.request().get("grace_s", self.spec["grace_s"] if noticed is None else noticed)
        return float(asked) if noticed is None else min(float(asked), noticed)

    def signalled(self) -> None:
        """SIGTERM: of who wrote down why, else of the scheduler, whose notice it is then."""
        reason = self.request().get("reason")
        if reason is None and self.watcher.scheduler:
            reason = self.watcher.give_notice(self.watcher.scheduler.signalled())
        self.ask_to_stop(reason or Reason.STOPPED)

    def ask_to_stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason
        self.asked_at = boot_clock() if self.asked_at is None else self.asked_at

    def tick(self, rest_s: float = POLL_S) -> None:
        """Runs the periodic checks (heartbeat, deadline, watcher) about twenty times a second, then rests."""
        now = boot_clock()
        if now - self.beat >= HEARTBEAT_S:
            self.beat = now
            self.event(Event.HEARTBEAT)
            data = [folder for folder, _ in (self.spec.get("data") or {}).values()]
            for path in (self.spec.get("code") or "", self.spec["env"].get("PYTHONPATH", "").partition(":")[0], *data):
                code_tree.touch(path)
        if self.deadline is not None and now > self.deadline:
            self.ask_to_stop(Reason.DEADLINE)
        if self.watched and now - self.looked >= PEERS_S:
            self.looked = now
            self.look_for_failure()
        reason = self.watcher.look(now)
        with contextlib.suppress(Exception):  # whatever it is: a message is no reason to end a run
            self.teller.look(now, self.deadline, self.watcher.notice)
        if reason == Reason.HANG:
            if self.hung_until is None and not self.stop_reason:
                self.watcher.ask_flight()  # first: the launcher may have the store that NCCL's monitor asks
                self.hung_until = boot_clock() + STACKS_S
                self.hold_launcher()
                self.watcher.tell_hang()
        elif reason:
            self.ask_to_stop(reason)
        time.sleep(rest_s)

    def look_for_failure(self) -> None:
        """Stop when a rank of any node failed, which a controller would tell us elsewhere."""
        for record in self.watched:
            failed = any(row["code"] not in OBEYED or row["signal"] not in OBEYED for row in record.read().exits)
            if failed or (record.end or {}).get("state") == "failed":
                self.watched = []
                if not self.stop_reason:
                    order = {"reason": Reason.FAILURE, "grace_s": PEER_GRACE_S, "release": True}
                    write_json(self.path("stop"), order)
                    self.ask_to_stop(Reason.FAILURE)
                return

    def hold_launcher(self) -> None:
        """Suspend the launcher, which would end the other ranks before they have written their stacks."""
        if self.child is not None:
            self.child.stopping = True  # Direct, which is in this process
            if self.spec.get("container"):
                container.hold_launcher(self.run_dir)
            elif isinstance(self.child, subprocess.Popen):
                self.child.send_signal(signal.SIGSTOP)

    def popen(self, argv: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
        us = os.getpid()

        def begin() -> None:
            die_with_parent(us)
            cgroup.enter(self.group)
            if self.held:  # or torchrun, which is signalled with its ranks, would kill these after 30 s
                signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))

        return subprocess.Popen(
            argv,
            cwd=self.spec["cwd"],
            env=self.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=begin,
        )

    def start_ranks(self, log: BinaryIO) -> Any:
        """torchrun, or the ranks themselves behind an object that looks like one child."""
        if self.spec.get("launcher", "torchrun") == "torchrun":
            return self.popen(self.spec["argv"], log)
        from .warm.launcher import Direct

        child = Direct(self.spec, self.environment, self.run_dir, log)
        for pid in child.pids:
            cgroup.enter(self.group, pid)
        return child

    def run_child(self, name: str, start: Callable[[BinaryIO], Any]) -> int:
        """Runs what `start` makes to its end, or ends it when asked. Its exit code, 128+n for signal n."""
        with open(self.path(name) + ".log", "ab") as log:
            try:
                child = start(log)
            except OSError as error:
                log.write(("%s\n" % error).encode())
                return 127
            self.child = child
            self.event(name, pid=child.pid)
            self.watcher.running = name == Event.TORCHRUN
            asked_at = None
            while child.poll() is None:
                now = boot_clock()
                if self.stop_reason and asked_at is None and self.hung_until is None:
                    asked_at = now
                    self.event(Event.STOPPING, reason=self.stop_reason, grace_s=self.grace_s())
                    self.terminate(child)
                elif self.asked:
                    self.terminate(child)  # a rank that was just starting told of itself only now
                if asked_at is not None and now > asked_at + self.grace_s():
                    kill_run(self.run_dir)
                if self.hung_until is not None and (now > self.hung_until or self.watcher.all_exited()):
                    kill_run(self.run_dir)
                self.tick()
                self.reap(child)
        return int(child.returncode if child.returncode >= 0 else 128 - child.returncode)

    def terminate(self, child: Any) -> None:
        """SIGTERM, once, to the ranks themselves: torchrun would kill them 30 s after its own, in any grace."""
        if not isinstance(child, subprocess.Popen):  # Direct, which has no more than the ranks
            child.terminate()
            return
        ranks = set(self.watcher.living()) - self.asked
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self.asked |= ranks
        if not self.asked:
            child.send_signal(signal.SIGINT if self.held else signal.SIGTERM)

    def reap(self, child: Any) -> None:
        """Orphans of the run come to us (subreaper); a zombie of theirs must not pile up."""
        own = getattr(child, "pids", [child.pid])
        for pid in children_of(os.getpid()):
            if pid not in own and start_time(pid) is None:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
