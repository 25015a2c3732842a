"""Budget: when money ends a run, and when it ends the nodes. Pure: what was spent, and what is spent an hour, come
in."""

from __future__ import annotations

from dataclasses import dataclass

OF_CLUSTER, OF_RUN = "budget of the cluster", "budget of the run"
GUARD = 1.2
"""A node's own clock takes prices to be so many times what they were when it was set: nobody tells it of a rise."""
WARN_SHARES = (0.5, 0.8, 0.95)
RESERVE_S = 180.0
"""Seconds that a stop takes at most while the nodes still cost: the checkpoint, its upload, giving the nodes back."""
REARM_S = 60.0
"""Seconds between two settings of the nodes' own clocks by a living controller."""
ALONE_S = 60.0
"""Before its money is over, a run that nobody stopped is stopped by its agents."""
BOOT_S = 600.0
"""A budget that is used up before the nodes are ready buys nothing."""


@dataclass(frozen=True)
class Budget:
    """One budget. `spent_usd` is what counts against it so far; `usd_per_hour` is what all nodes cost together."""

    budget_usd: float
    spent_usd: float
    usd_per_hour: float
    what: str = OF_CLUSTER

    @property
    def left_usd(self) -> float:
        return self.budget_usd - self.spent_usd

    @property
    def share(self) -> float:
        return self.spent_usd / self.budget_usd

    def seconds_left(self, guard: float = 1.0) -> float:
        """Seconds until the budget is used up if prices were `guard` times what they are; endless where nothing
        costs."""
        if self.usd_per_hour <= 0:
            return float("inf")
        return self.left_usd / (self.usd_per_hour * guard) * 3600

    def due(self) -> bool:
        """Tell whether a stop has to begin, so that it ends before the budget does."""
        return self.seconds_left() <= RESERVE_S

    def deadline_unix(self, now_unix: float) -> float | None:
        """Unix time at which the nodes have to end by themselves; None where nothing costs."""
        left = self.seconds_left(GUARD)
        return None if left == float("inf") else now_unix + max(0.0, left)

    def run_seconds(self, guard: float) -> float:
        """Seconds for which the agents of a run go on by themselves."""
        return max(0.0, self.seconds_left(guard) - ALONE_S)

    def warning(self, said: float) -> tuple[float, str] | None:
        """The highest share passed that is above `said`, and what to say about it; None when there is none."""
        passed = max((share for share in WARN_SHARES if share <= self.share), default=0.0)
        if passed <= said:
            return None
        left_h = self.seconds_left() / 3600
        return passed, (
            f"{self.spent_usd:.2f} of {self.budget_usd:.2f} USD of the {self.what} are spent ({self.share:.0%}), "
            f"{left_h:.1f} h are left at {self.usd_per_hour:.2f} USD/h"
        )

    def words(self) -> str:
        """Why a run was stopped."""
        return f"{self.what}: {self.spent_usd:.2f} of {self.budget_usd:.2f} USD are spent"


def tightest(budgets: list[Budget]) -> Budget | None:
    """The one that is used up first; None when there is none."""
    return min(budgets, key=lambda budget: budget.seconds_left(), default=None)


def too_small(budget_usd: float, usd_per_hour: float, boot_s: float = BOOT_S) -> str:
    """Why a budget is refused before anything is made; empty when it will do."""
    needed = usd_per_hour * GUARD * (boot_s + RESERVE_S) / 3600
    if budget_usd >= needed:
        return ""
    return f"budget_usd {budget_usd:.2f} is used up before the nodes have booted: {needed:.2f} USD are needed for that"
