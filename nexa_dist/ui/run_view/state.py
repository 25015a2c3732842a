"""A run as its nodes report it: no output, no clock of its own."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nexa_dist.node.protocol import Event
from nexa_dist.straggler import Straggler, straggler
from nexa_dist.ui.run_view.step_lines import read

RATE_SAMPLES = 60
UNREPORTED_S = 60.0
UNREPORTED = "no step is reported; configs/train/own_script.py shows the lines that report them, loss and checkpoints"
STRAGGLES = 3
"""Reports of its node in a row that name a rank, before it is said to hold the others up."""
RANK = re.compile(r"[0-9]{1,7}")


@dataclass
class Row:
    """One node of the attempt."""

    state: str = "starting"
    heard: float = 0.0
    """Unix time here at which the last word came."""
    quiet_since: float | None = None
    steps: dict[int, int] = field(default_factory=dict)
    """Steps by rank."""
    own_s: dict[int, float] = field(default_factory=dict)
    """Seconds a step of each rank's own work."""
    begun: bool = False
    """True when the node's `started` of this attempt was seen."""

    def span(self) -> str:
        """`40`, `40–41`, or nothing: the steps of its ranks."""
        low, high = min(self.steps.values(), default=None), max(self.steps.values(), default=None)
        return "" if low is None else str(low) if low == high else f"{low}–{high}"


@dataclass
class State:
    """A run as its nodes report it. Times are unix seconds of the caller's clock."""

    run_id: str
    usd_per_hour: float
    """Of all nodes."""
    started_unix: float
    number: int = 1
    world_size: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """Newest of, loss, tokens_per_s, saved, durable: the newest value of each, rank 0's where it is known."""
    resume_step: int | None = None
    read: dict[str, float] = field(default_factory=dict)
    """Figures in rank 0's lines: step, loss and the like, while no rank reports a step."""
    running_since: float | None = None
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_SAMPLES))
    """(unix time on the node, step) at each change of the step."""
    straggler: Straggler | None = None
    named: int = 0
    """Reports in a row that name this straggler."""

    def attempt(self, number: int, nodes: Sequence[str], world_size: int, resume_step: int | None, now: float) -> None:
        self.number, self.world_size, self.resume_step = number, world_size, resume_step
        self.rows = {name: Row(heard=now) for name in nodes}
        self.samples.clear()
        self.read.clear()
        self.running_since = None
        self.straggler, self.named = None, 0
        self.last.pop("loss", None)
        self.last.pop("tokens_per_s", None)

    def event(self, node: str, record: Mapping[str, Any], now: float) -> bool:
        """Take an event in; True when the record belongs to this attempt."""
        row = self.rows.setdefault(node, Row())
        row.heard, row.quiet_since, name = now, None, str(record.get("event"))
        if name == Event.STARTED:
            row.begun = record.get("attempt") == self.number
        if not row.begun:
            return False
        if name == Event.PROGRESS:
            self._progress(row, record)
            self._straggles(node, row)
        if name == Event.TORCHRUN and self.running_since is None:
            self.running_since = now
        row.state = _state(name, record, row.state, now)
        return True

    def line(self, rank: int | None, text: bytes) -> None:
        if rank == 0 and self.step is None:
            self.read |= read(text)

    def unreported(self, now: float) -> bool:
        """Tell whether the ranks have run for a while, and nobody knows how far they are."""
        silent = self.step is None and "step" not in self.read
        return silent and self.running_since is not None and now - self.running_since >= UNREPORTED_S

    def quiet(self, node: str, seconds: float, now: float) -> None:
        row = self.rows.setdefault(node, Row())
        row.quiet_since = now - seconds

    def heard(self, node: str, now: float) -> None:
        row = self.rows.setdefault(node, Row())
        row.heard, row.quiet_since = now, None

    def _progress(self, row: Row, record: Mapping[str, Any]) -> None:
        before = self.step
        row.steps |= {rank: int(step) for rank, step in _by_rank(record.get("steps")).items()}
        row.own_s |= _by_rank(record.get("own_s"))
        if 0 in row.steps or not any(0 in other.steps for other in self.rows.values()):
            for key in ("of", "loss", "tokens_per_s", "saved", "durable"):
                if (value := _number(record.get(key))) is not None:
                    self.last[key] = value
        if (step := self.step) is not None and step != before:
            self.samples.append((float(_number(record.get("at")) or 0.0), step))

    def _straggles(self, node: str, row: Row) -> None:
        """Judge at the reports of the slowest rank's own node: the others' tell nothing new of it."""
        found = straggler(self.own_s)
        if found is None:
            self.straggler, self.named = None, 0
        elif found.rank in row.own_s:
            same = self.straggler is not None and self.straggler.rank == found.rank
            self.straggler, self.named = replace(found, node=node), self.named + 1 if same else 1

    @property
    def own_s(self) -> dict[int, float]:
        """Seconds a step of every rank's own work, where they are told."""
        return {rank: own for row in self.rows.values() for rank, own in sorted(row.own_s.items())}

    @property
    def holds_up(self) -> Straggler | None:
        """The rank that the others wait for, and have waited for in several reports."""
        return self.straggler if self.named >= STRAGGLES else None

    @property
    def step(self) -> int | None:
        """Step that every rank that reports has done."""
        return min((step for row in self.rows.values() for step in row.steps.values()), default=None)

    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of the last steps; None where that cannot be said."""
        step, of = self.step, self.last.get("of")
        if step is None or of is None or len(self.samples) < 2:
            return None
        (first_at, first), (last_at, last) = self.samples[0], self.samples[-1]
        return max(0.0, (of - step) * (last_at - first_at) / (last - first)) if last > first else None

    def figures(self, now: float) -> dict[str, Any]:
        """The numbers of the run: what --json prints."""
        elapsed_s, eta_s = max(0.0, now - self.started_unix), self.eta_s()
        return {
            "attempt": self.number,
            "step": self.step,
            **{key: self.last.get(key) for key in ("of", "loss", "tokens_per_s", "saved", "durable")},
            "own_s": {str(rank): own for rank, own in self.own_s.items()} or None,
            "straggler": self.holds_up.told if self.holds_up else None,
            "read": None if self.step is not None else dict(self.read) or None,
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "elapsed_s": round(elapsed_s, 1),
            "cost_usd": round(elapsed_s / 3600 * self.usd_per_hour, 4),
        }


def _state(name: str, record: Mapping[str, Any], before: str, now: float) -> str:
    """Words for what a node is at after this record."""
    reason = str(record.get("reason") or "")
    if name == Event.RANK_EXIT and (record.get("code") or record.get("signal")):
        how = f"signal {record['signal']}" if record.get("signal") else f"exit code {record['code']}"
        return f"rank {record.get('rank')}: {'out of memory' if record.get('oom') else how}"
    if name == Event.NOTICE:
        left_s = (_number(record.get("at_unix")) or now) - now
        return f"spot notice: {record.get('action')} in {max(0.0, left_s):.0f} s"
    if name == Event.HANG:
        return f"hangs: ranks {', '.join(map(str, record.get('ranks') or []))}"
    if name == Event.ENDED:
        return f"{record.get('state')}: {reason}" if reason else str(record.get("state"))
    if name == Event.STOPPING:
        return f"stopping: {reason}"
    return {Event.STARTED: "preparing", Event.PREPARED: "prepared", Event.TORCHRUN: "running"}.get(name, before)


def _by_rank(found: Any) -> dict[int, int | float]:
    """The numbers of a JSON object whose keys are ranks."""
    told = {str(rank): _number(value) for rank, value in found.items()} if isinstance(found, dict) else {}
    return {int(rank): value for rank, value in told.items() if RANK.fullmatch(rank) and value is not None}


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def span(seconds: float | None) -> str:
    """`12 s`, `3 min`, `2 h 05 min`; `-` for nothing."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def guess(found: Mapping[str, float]) -> str:
    """`step 550/1000 loss 2.3 (read from its lines, not reported)`"""
    of = f"/{found['of']:.0f}" if "of" in found else ""
    words = [f"step {found['step']:.0f}{of}"] if "step" in found else []
    words += [f"loss {found['loss']:.4g}"] if "loss" in found else []
    return f"{' '.join(words)} (read from its lines, not reported)"


def sentence(figures: Mapping[str, Any]) -> str:
    """`step 40/240 loss 4.21 3200 tok/s, ETA 3 min, saved 40, durable 20, 0.12 USD`"""
    if figures.get("read") and figures["step"] is None:
        return f"{guess(figures['read'])}, {figures['cost_usd']:.2f} USD"
    of = f"/{figures['of']:.0f}" if figures["of"] is not None else ""
    words = [f"step {'-' if figures['step'] is None else figures['step']}{of}"]
    if figures["loss"] is not None:
        words.append(f"loss {figures['loss']:.4g}")
    if figures["tokens_per_s"] is not None:
        words.append(f"{figures['tokens_per_s']:.0f} tok/s")
    parts = [" ".join(words)]
    if figures["eta_s"] is not None:
        parts.append(f"ETA {span(figures['eta_s'])}")
    parts += [f"{key} {figures[key]:.0f}" for key in ("saved", "durable") if figures[key] is not None]
    return ", ".join([*parts, f"{figures['cost_usd']:.2f} USD"])
