"""Did the kernel end a process for want of memory? It says so in counters only, not in the exit code."""

from __future__ import annotations

import os

from .cgroup import own


def _events_file() -> str | None:
    """memory.events of the nearest group (version 2) above us that counts memory: it includes all below it."""
    mount, folder = own() or ("", "")
    while mount:
        path = mount + folder.rstrip("/") + "/memory.events"
        if os.path.exists(path):
            return path
        if folder in ("", "/"):
            return None
        folder = os.path.dirname(folder)
    return None


def counter() -> int | None:
    """Count the processes of our cgroup, or of the whole machine, that the kernel's OOM killer has ended; None where it
    does not say."""
    for path in (_events_file(), "/proc/vmstat"):
        try:
            with open(path or "") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, StopIteration):
            continue
    return None


class Watch:
    """A kill counts as ours only when it is recent: the counter may be the machine's."""

    def __init__(self) -> None:
        self.before = self.now = counter()

    def look(self) -> None:
        """Looks at the counters; to be called every few seconds."""
        self.before, self.now = self.now, counter()

    def killed(self, signal_number: int) -> bool:
        """Tell whether a process that `signal_number` ended just now was ended by the kernel for its memory."""
        now = counter()
        return signal_number == 9 and now is not None and self.before is not None and now > self.before
