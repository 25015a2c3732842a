"""Context that every verb is handed: the workspace, the seam to the outside, and somebody to report to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import Workspace


def _passed() -> float:
    """Seconds, also those that the machine slept (where that clock is missing: the wall clock's)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


_BEGAN = time.time() - _passed()


def steady_now() -> float:
    """The time of day as this command found it, and what has passed since: a clock that is set meanwhile uses up no
    budget and no deadline."""
    return _BEGAN + _passed()


@dataclass(frozen=True)
class Context:
    """`say` takes a line for people; `times` collects how many seconds each phase took; tests pass a clock.
    When `brief`, the lines below a phase are not said."""

    workspace: Workspace
    runner: Runner
    say: Callable[[str], None]
    times: dict[str, float] = field(default_factory=dict)
    now: Callable[[], float] = steady_now
    sleep: Callable[[float], None] = time.sleep
    brief: bool = False
    dry: bool = False
    """True in a dry run: nothing is changed, and nobody is asked; `runner` starts only what reads (run/fake.py)."""

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """Says what begins and how long it took, also when it failed or somebody ended it."""
        began, outcome = time.monotonic(), "failed after"
        self.say(f"▸ {title}")
        try:
            yield
            outcome = "done in"
        except KeyboardInterrupt:
            outcome = "interrupted after"
            raise
        finally:
            self.times[title] = time.monotonic() - began
            self.say(f"  {outcome} {self.times[title]:.1f} s")

    def detail(self, text: str) -> None:
        """A line below the phase."""
        if not self.brief:
            self.say(f"  {text}")
