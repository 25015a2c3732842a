"""Index of the times at which a log's bytes were written: beside each log a list of (time, size), for `nexa logs
--since`."""

from __future__ import annotations

import contextlib
import os
import time

EVERY_S = 1.0


class Times:
    """Adds a line `<unix> <bytes>` to LOG.times whenever the log has grown, at most once in EVERY_S."""

    def __init__(self, run_dir: str, attempt: int) -> None:
        self.run_dir, self.ending = run_dir, "attempt_%d.log" % attempt
        self.sizes: dict[str, int] = {}

    def note(self) -> None:
        """Raises nothing: without room on the disk a line is missing."""
        for path in self._logs():
            with contextlib.suppress(OSError):
                size = os.stat(path).st_size
                if size == self.sizes.get(path, 0):
                    continue
                with open(path + ".times", "a") as file:
                    file.write("%.3f %d\n" % (time.time(), size))
                self.sizes[path] = size

    def _logs(self) -> list[str]:
        found = []
        for name in os.listdir(self.run_dir):
            if name.startswith("rank_"):
                found.append(os.path.join(self.run_dir, name, self.ending))
            elif name.endswith("." + self.ending):
                found.append(os.path.join(self.run_dir, name))
        return found
