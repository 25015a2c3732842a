"""What people and programs see of a run while it goes on: a panel on a terminal, lines elsewhere, JSON lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from nexa_dist.ui.run_view.state import State
from nexa_dist.ui.run_view.views import Json, Plain, Silent

Kind = Literal["auto", "plain", "json", "none"]


class View(Protocol):
    """Takes what happens; draws in `tick` or at once. Nothing here raises for what a node sends."""

    def attempt(
        self,
        number: int,
        nodes: Sequence[str],
        world_size: int,
        resume_step: int | None,
        replaced: Sequence[str] = (),
    ) -> None:
        """An attempt begins; `replaced` are nodes that were made anew for it."""
        ...

    def line(self, node: str, source: str, rank: int | None, text: bytes, passing: bool = False) -> None:
        """A line of a log. Only ranks that are to be shown, and `prepare`, are. `passing`: what a progress bar shows by
        now; on a terminal it is shown in place."""
        ...

    def event(self, node: str, record: Mapping[str, Any]) -> None:
        """A record of a node's agent.jsonl; those of earlier attempts are passed over."""
        ...

    def quiet(self, node: str, seconds: float) -> None:
        """No word from the node for so long."""
        ...

    def note(self, text: str) -> None:
        """A line of talk."""
        ...

    def tick(self) -> None:
        """Called at each turn of the loop, at least once a second."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """While a question is asked at the terminal."""
        ...

    def close(self) -> None:
        """The last state is drawn; the terminal is as it was. Safe to call twice."""
        ...


def view(
    kind: Kind,
    *,
    run_id: str,
    usd_per_hour: float,
    started_unix: float,
    shown: set[int] | None,
    now: Callable[[], float] = time.time,
) -> View:
    """A view of one run. `usd_per_hour` is that of all nodes; `shown` are the ranks whose lines are shown (None: all).
    "auto" is the panel on a terminal and plain lines elsewhere; both go to stderr, JSON goes to stdout."""
    state = State(run_id, usd_per_hour, started_unix)
    if kind == "json":
        return Json(state, shown, now)
    if kind == "none":
        return Silent(state, shown, now)
    if kind == "auto" and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from nexa_dist.ui.run_view.panel import Drawn

        return Drawn(state, shown, now)
    return Plain(state, shown, now)
