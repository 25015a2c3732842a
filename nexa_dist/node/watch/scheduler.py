"""The notice of a scheduler that takes the node back, as the task that holds the node writes it down for the agent."""

from __future__ import annotations

import os
import time
from typing import Any

from ..oslib import KILL_WAIT_S, NOTICE, read_json


class Scheduler:
    """The file of the notice: {"kill_wait_s"}, and once it has come "action" and "at_unix" too."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def here(cls) -> Scheduler | None:
        """The one of this node; None where no scheduler has it."""
        path = os.environ.get(NOTICE)
        return cls(path) if path else None

    def look(self) -> dict[str, Any] | None:
        """Fields of the notice; None before it comes."""
        told = self._told()
        if type(told.get("at_unix")) is not int:
            return None
        return {"action": str(told.get("action")), "at_unix": told["at_unix"], "seen_unix": time.time()}

    def signalled(self) -> dict[str, Any]:
        """Fields of a notice that comes as a signal to every process: the file may not have it yet."""
        wait_s = self._told().get("kill_wait_s")
        at = int(time.time() + (wait_s if type(wait_s) is int else KILL_WAIT_S))
        return self.look() or {"action": "Slurm ends the job", "at_unix": at, "seen_unix": time.time()}

    def _told(self) -> dict[str, Any]:
        found = read_json(self.path, {})
        return found if isinstance(found, dict) else {}
