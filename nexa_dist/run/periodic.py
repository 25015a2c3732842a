"""Periodic task, done again and again from a thread of its own, for as long as this process lives and no longer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from nexa_dist.errors import NexaError


class PeriodicTask:
    """Calls `act` at once and every `every_s` seconds after. What it says, and why it failed, waits in `said`: the
    thread that talks to people takes it from there."""

    def __init__(self, act: Callable[[], str], every_s: float) -> None:
        self.said: deque[str] = deque(maxlen=20)
        self._act, self._every_s = act, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="periodic")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the task; what is under way may end first, so that it does not undo what comes next. A node that does not
        answer holds us up for two seconds at most."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        last = ""
        while not self._over.is_set():
            try:
                words = self._act()
            except NexaError as error:
                words = f"warning: the nodes' own clocks were not set: {error}"
            if words and words != last and not self._over.is_set():
                self.said.append(words)
            last = words
            self._over.wait(self._every_s)
