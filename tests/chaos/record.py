"""What one seed of the nemesis did and saw: plain values, so that the checker can be tried on made ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "kill_rank", "kill_torchrun", "kill_agent", "kill_host", "reclaim", "notice", "freeze_rank", "cut_short",
    "cut_long", "fill_disk", "flip_bit", "kill_supervisor", "sleep_laptop",
]  # fmt: skip
HOST_FAULTS: frozenset[Kind] = frozenset(("kill_host", "reclaim", "notice", "cut_short", "cut_long"))
"""Need machines of their own, and a cloud that makes them anew."""
ENDS: frozenset[Kind] = frozenset(
    (
        "kill_rank",
        "kill_torchrun",
        "kill_agent",
        "kill_host",
        "reclaim",
        "notice",
        "freeze_rank",
        "cut_long",
        "flip_bit",
    )
)
"""Faults that end the attempt that they hit."""
CAUSES: Mapping[Kind, tuple[str, ...]] = {
    "kill_rank": ("rank", "signal 9", "sigkill", "killed"),
    "flip_bit": ("rank", "signal 9", "sigkill", "killed"),
    "kill_torchrun": ("torchrun", "rank", "launcher", "killed"),
    "kill_agent": ("agent", "lost", "gone"),
    "kill_host": ("no word", "unreachable", "lost", "gone", "rank", "does not answer", "silent", "terminated"),
    "reclaim": (
        "no word",
        "unreachable",
        "lost",
        "gone",
        "rank",
        "does not answer",
        "silent",
        "terminated",
        "shutting",
    ),
    "notice": ("spot", "notice"),
    "freeze_rank": ("hang", "stuck", "no step"),
    "cut_long": ("no word", "unreachable", "lost", "gone", "rank", "hang", "stuck", "does not answer", "silent"),
}
"""A cause of the end must hold one of these words, in small letters."""


@dataclass(frozen=True)
class Fault:
    """One fault of a plan. It acts once the training has reached `at_step` and, for the second and later ones,
    `after_s` seconds have passed since the one before."""

    kind: Kind
    at_step: int
    node: str = "n0"
    rank: int = 0
    seconds: float = 0.0
    """How long it lasts: a cut, a sleep, a full disk, a notice; the pause before a killed supervisor's successor."""
    after_s: float = 0.0
    how: str = ""
    """kill_supervisor: attach or resume."""


@dataclass(frozen=True)
class Act:
    """A fault as it happened, Unix times. `step` is the highest that any rank had told."""

    fault: Fault
    at_unix: float
    step: int
    until_unix: float
    """When it was over; the same as `at_unix` for what only strikes."""
    applied: bool = True
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """One look at every host: which attempts had rank processes on which hosts that could be reached."""

    at_unix: float
    ranks: Mapping[int, tuple[str, ...]]
    steps: Mapping[int, int] = field(default_factory=dict)
    """Highest step by attempt, so far."""
    lag: int = 0
    """Steps by which the durable store is behind rank 0's newest checkpoint, as rank 0 told."""


@dataclass(frozen=True)
class Seen:
    """Everything that the checker judges."""

    seed: int
    steps: int
    save_every: int
    weights: str
    """SHA-256 of an unbroken run's."""
    acts: tuple[Act, ...]
    exit_code: int | None
    """Of the last controller; None when the time was up."""
    record: Mapping[str, Any]
    """run.json"""
    manifest: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    """Rank 0's result.json"""
    final_weights: tuple[str, ...]
    """Every `weights` line of rank 0's log."""
    checkpoint: Mapping[str, Any] | None
    """step, sha256 and problems of the newest checkpoint on rank 0's host"""
    samples: tuple[Sample, ...]
    left: Mapping[str, tuple[str, ...]]
    """Command lines of the run's processes by host, right after the last controller returned."""
    instances: tuple[tuple[str, str], ...]
    """(node, instance id) of everything that the cloud bills"""
    nodes: tuple[str, ...]
    leaks: tuple[str, ...] = ()
    """Where a secret was found."""
    ended_unix: float = 0.0
