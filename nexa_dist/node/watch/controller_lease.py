"""The controller's lease on a run: whether a controller follows it.

`follow` holds a shared lock on RUN_DIR/contact while its input is open, and touches the file at every sign of life.
The kernel frees the lock when `follow` ends in whatever way, so the agent sees at once that a connection is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from .hang import Seen

LOST_AFTER_S = 15.0
"""Limit while a controller is connected and gives no sign of life."""
CLOSED_AFTER_S = 1.5
"""Limit once the connection is closed: time for a dropped one to come back."""
FIRST_AFTER_S = 90.0
"""Limit before the first connection: a controller follows once all nodes have started."""


def take_seat(run_dir: str) -> int:
    """Locks RUN_DIR/contact (shared). While the answered descriptor is open the agent counts a controller as connected.
    Raises OSError without the folder."""
    fd = os.open(os.path.join(run_dir, "contact"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    os.utime(fd)
    return fd


class Contact:
    """Counts the seconds without a controller that the agent itself was awake for."""

    def __init__(self, run_dir: str) -> None:
        self.path, self.seen = os.path.join(run_dir, "contact"), Seen()
        self.mark: tuple[bool, int] | None = None
        self.limit_s, self.quiet_s = FIRST_AFTER_S, 0.0
        self.untouched = self._look()[1]

    def lost(self, now: float) -> bool:
        """Tell whether the run has been without a controller for longer than its limit."""
        passed, mark = self.seen.step(now), self._look()
        if mark[0]:
            self.limit_s = LOST_AFTER_S
        elif self.limit_s == LOST_AFTER_S or mark[1] != self.untouched:  # somebody may come and go between two looks
            self.limit_s = CLOSED_AFTER_S
        self.quiet_s = self.quiet_s + passed if mark == self.mark else 0.0
        self.mark = mark
        return self.quiet_s > self.limit_s

    def followed(self) -> bool:
        """Tell whether a controller is connected now."""
        return self._look()[0]

    def _look(self) -> tuple[bool, int]:
        """Look for the controller: (a controller is connected, time of its last sign of life)."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return self.mark or (False, 0)
        try:
            there = True
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there = False
            return there, os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)
