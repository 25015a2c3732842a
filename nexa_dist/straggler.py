"""The rank that the others wait for, by each rank's own time a step. Screens and reports ask it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

STRAGGLER = 1.5
"""A rank whose own work takes so many times the median's is named."""
LEAST_S = 0.05
"""A smaller difference a step is noise, however large it is beside the median."""


@dataclass(frozen=True)
class Straggler:
    """A rank, its own seconds a step, and those of the median (the lower of the two in the middle)."""

    rank: int
    own_s: float
    median_s: float
    node: str = ""

    @property
    def words(self) -> str:
        ratio = f"{min(self.own_s / max(self.median_s, 1e-3), 999):.1f} × the median's own time a step"
        where = f" ({self.node})" if self.node else ""
        each = f"{self.own_s:.2f} s, the median {self.median_s:.2f} s"
        return f"rank {self.rank}{where} takes {ratio} ({each}); the others wait for it"

    @property
    def told(self) -> dict[str, Any]:
        return {**asdict(self), "words": self.words}


def straggler(own_s: Mapping[int, float], least_s: float = LEAST_S) -> Straggler | None:
    """`own_s`: seconds a step of every rank without waiting for the others. None: no rank holds them up, or fewer than
    two tell."""
    if len(own_s) < 2:
        return None
    usual = statistics.median_low(own_s.values())
    slowest = max(own_s, key=lambda rank: own_s[rank])
    if own_s[slowest] < STRAGGLER * usual or own_s[slowest] - usual < least_s:
        return None
    return Straggler(slowest, own_s[slowest], usual)
