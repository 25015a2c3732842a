"""A fault of a node as it is told, and what becomes of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["fail", "warn"]
Cause = Literal[
    "unreachable", "environment", "versions", "gpu missing", "driver", "fabric manager", "ecc", "xid", "throttled",
    "nvlink", "efa", "memlock", "limits", "route", "mtu", "port", "clock", "disk", "disk full", "disk slow", "memory",
    "shm", "cpu throttled", "slow node", "slow link", "slow network", "group test", "busy",
]  # fmt: skip
MENDED_BY_ANOTHER_MACHINE = frozenset[Cause](
    ("gpu missing", "driver", "fabric manager", "ecc", "xid", "throttled", "nvlink", "efa", "disk slow", "memory",
     "slow node", "unreachable")
)  # fmt: skip
"""Faults of the machine itself. What its software or its neighbours do wrong, another machine would do too."""
OF_GROUP_TEST = frozenset[Cause](("slow node", "slow link", "slow network", "group test"))
"""Causes that only the test of the group can find."""
ALL = "all"
"""Name in the place of a node's: nobody in particular."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be. `fail` keeps the node from training, `warn` is only said."""

    node: str
    cause: Cause
    severity: Severity
    seen: str
    expected: str
    do: str

    @property
    def words(self) -> str:
        return f"{self.node}: {self.cause}: {self.seen} (expected: {self.expected})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fail(node: str, cause: Cause, seen: str, expected: str, do: str) -> Fault:
    return Fault(node, cause, "fail", seen, expected, do)


def warn(node: str, cause: Cause, seen: str, expected: str, do: str) -> Fault:
    return Fault(node, cause, "warn", seen, expected, do)


def failures(findings: Iterable[Fault]) -> list[Fault]:
    return [finding for finding in findings if finding.severity == "fail"]


def replaceable(findings: Iterable[Fault]) -> dict[str, list[str]]:
    """Causes by node, of the nodes that another machine would mend."""
    found: dict[str, list[str]] = {}
    for finding in failures(findings):
        if finding.cause in MENDED_BY_ANOTHER_MACHINE and finding.node != ALL:
            found.setdefault(finding.node, []).append(finding.cause)
    return found


def odd_ones(values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Value that most have, and the names of those that have another. In a draw the first node is right."""
    counts = Counter(values.values())
    most = max(counts.values(), default=0)
    usual = next((value for value in values.values() if counts[value] == most), None)
    return usual, [name for name, value in values.items() if value != usual]
