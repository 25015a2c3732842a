"""View of a run while it goes on, for people and programs: a panel on a terminal, lines elsewhere, JSON lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Literal

from nexa_dist.ui.run_view.state import State
from nexa_dist.ui.run_view.views import Json, Plain, Silent

Kind = Literal["auto", "plain", "json", "none"]


def view(kind: Kind, state: State, shown: set[int] | None, now: Callable[[], float] = time.time) -> Silent:
    """A view of one run; `shown` are the ranks whose lines are shown (None: all). "auto" is the panel on a terminal and
    plain lines elsewhere; both go to stderr, JSON goes to stdout."""
    if kind == "json":
        return Json(state, shown, now)
    if kind == "none":
        return Silent(state, shown, now)
    if kind == "auto" and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from nexa_dist.ui.run_view.panel import Drawn

        return Drawn(state, shown, now)
    return Plain(state, shown, now)
