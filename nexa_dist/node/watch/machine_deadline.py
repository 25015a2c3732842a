"""The clock of the machine itself (deadline.sh), which powers it off when its time, its lease or its idleness is up.

A run shows it that the machine is in use, and ends with a checkpoint before the power goes. Where there is no such
clock nothing happens. Its times are in seconds of /proc/uptime, which nobody sets.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

FOLDER = "/var/lib/nexa"
LOOK_S = 2.0
BUSY_S = 10.0


class Due:
    """Marks the machine as in use and reads its deadline; `look` acts every two seconds at most."""

    def __init__(self, folder: str = "") -> None:
        self.folder = folder or os.environ.get("NEXA_DEADLINE_DIR") or FOLDER
        self.next_look = self.next_busy = 0.0
        self.told = False

    def look(self, now: float) -> dict[str, Any] | None:
        """`now` is boot_clock(). Once, when a run has to end: {"why", "acts_unix", "seen_unix"}."""
        if now < self.next_look:
            return None
        self.next_look = now + LOOK_S
        if now >= self.next_busy:
            self.next_busy = now + BUSY_S
            with contextlib.suppress(OSError):  # no such clock, or none that counts this
                os.utime(os.path.join(self.folder, "busy"), follow_symlinks=False)
        if self.told:
            return None
        try:
            with open(os.path.join(self.folder, "runs_until")) as file:
                stop, end, why = file.read(200).split()
                written = os.fstat(file.fileno()).st_mtime_ns
            with open("/proc/uptime") as file:
                up = float(file.read().split()[0])
            left_s = int(end) - up
            source = os.path.join(self.folder, "lease" if why == "lease" else "due_unix")
            if up < int(stop) or os.stat(source, follow_symlinks=False).st_mtime_ns > written:
                return None  # there is time, or it was renewed and the machine has not looked since
        except (OSError, ValueError):  # the next look reads it whole
            return None
        self.told, seen = True, time.time()
        return {"why": why, "acts_unix": round(seen + left_s, 1), "seen_unix": seen}
