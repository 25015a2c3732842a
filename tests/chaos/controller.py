"""The command that follows a run: started, killed and succeeded by another, put to sleep and woken."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from tests.chaos import procs
from tests.chaos.rigs import Rig


class Controller:
    """`log` gets what every controller of the run said."""

    def __init__(self, rig: Rig, log: Path) -> None:
        self.rig, self.log = rig, log
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> None:
        self.child = self.rig.begin(*words, log=self.log)

    def everything(self) -> list[int]:
        """The controller, its children, and the ssh connections that it shares, which are no children of it."""
        assert self.child is not None
        mark = f"nexa-ssh-{self.child.pid}-"
        masters = [pid for pid in procs.table() if mark in procs.command(pid)]
        return list(dict.fromkeys([*procs.tree(self.child.pid), *masters]))

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.child.poll() if self.child is not None else None

    def runs(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def kill(self) -> None:
        """SIGKILL to all of it."""
        assert self.child is not None
        if self.child.poll() is None:
            procs.kill_trees(self.everything())
        self.child.wait()

    def succeed_killed(self, pause_s: float, how: str, run_id: str) -> None:
        """Kills the controller alone (what it started is left to itself); another takes over after a pause."""
        assert self.child is not None
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        time.sleep(pause_s)
        self.start(*(("attach", run_id) if how == "attach" else ("run", "--resume", run_id)))

    def sleep(self, seconds: float) -> None:
        """A closed lid: nothing of it runs, its connections stay open."""
        pids = self.everything()
        procs.send(pids, signal.SIGSTOP)
        time.sleep(seconds)
        procs.send(pids, signal.SIGCONT)
