"""Where the time of a step goes: torch.profiler on some steps of every rank, a summary, traces of some ranks.

Forward, the whole step and saving are ranges of ours; the rest are torch's own names. A collective waits for the
slowest rank, so a rank's own work is what is left of its step without its collectives.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from nexa_dist.config.trainer import ProfileConfig
from nexa_dist.train import control
from nexa_dist.train.env import RankEnv

FOLDER = "profile"
"""Below the run's folder: rank_N.trace.json.gz (chrome://tracing, Perfetto) and summary.json."""
STRAGGLER = 1.5
"""A rank whose own work takes so many times the median's is named."""
_STEP, _FORWARD, _SAVE = "nexa.step", "nexa.forward", "nexa.save"
_PARTS = ("data", "forward", "backward", "optimizer", "save")


class Profile:
    """The profiled steps of one rank. Without a config every call does nothing. `end` is a collective, so every rank
    calls `begin` and `end` at the same steps."""

    def __init__(self, config: ProfileConfig | None, env: RankEnv, steps: int) -> None:
        self._config, self._env = config, env
        self._first, self._last = config.range(steps) if config else (0, -1)
        self._profile: profile | None = None
        self._started = 0.0

    def range(self, name: str) -> AbstractContextManager[Any]:
        """What happens in the block is `step`, `forward` or `save`."""
        return record_function(f"nexa.{name}") if self._profile else nullcontext()

    def begin(self, done: int) -> None:
        """Before the step that follows `done` ones. A resume within the range profiles what is left of it."""
        if self._profile is None and self._first <= done + 1 <= self._last:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile, self._first = profile(activities=kinds), done + 1
            self._profile.start()
            self._started = time.perf_counter()

    def end(self, done: int, *, stopping: bool = False) -> None:
        """After a step; `stopping`: no other follows."""
        if self._profile is None or (done < self._last and not stopping):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall_s = time.perf_counter() - self._started
        running, self._profile = self._profile, None
        running.stop()
        folder = self._env.run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        assert self._config is not None
        if self._env.rank in self._config.ranks:
            running.export_chrome_trace(str(folder / f"rank_{self._env.rank}.trace.json.gz"))
        count = done - self._first + 1
        ranks = control.gather(seconds(running.key_averages(), wall_s, count))
        if self._env.rank == 0:
            _write(folder, {"first_step": self._first, "last_step": done, "ranks": ranks})
            print("\n".join(words(self._first, done, ranks)), flush=True)


def seconds(events: Any, wall_s: float, steps: int) -> dict[str, float]:
    """Seconds a step of this rank, by part; `communication` may overlap with others, `own` is the step without it."""
    total = {event.key: event.cpu_time_total / 1e6 for event in events}
    on_cpu = sum(spent for name, spent in total.items() if name.startswith("gloo:"))
    on_gpu = sum(event.device_time_total / 1e6 for event in events if event.key.startswith("nccl"))
    parts = {
        "data": sum(spent for name, spent in total.items() if name.startswith("enumerate(DataLoader)")),
        "forward": total.get(_FORWARD, 0.0),
        "backward": total.get(_STEP, 0.0) - total.get(_FORWARD, 0.0),
        "optimizer": sum(spent for name, spent in total.items() if name.startswith("Optimizer.step")),
        "save": total.get(_SAVE, 0.0),
        "communication": on_cpu + on_gpu,
    }
    own = max(0.0, wall_s - parts["communication"])
    return {name: spent / steps for name, spent in {"wall": wall_s, **parts, "own": own}.items()}


def words(first: int, last: int, ranks: Sequence[Mapping[str, float]]) -> list[str]:
    """The summary, a line a rank, and the slowest rank."""
    lines = [f"profile of steps {first} to {last}: {statistics.median(r['wall'] for r in ranks) * 1e3:.0f} ms a step"]
    for rank, spent in enumerate(ranks):
        parts = [f"{name} {spent[name] * 1e3:.0f}" for name in (*_PARTS, "communication") if spent[name] >= 5e-4]
        lines.append(f"  rank {rank}: {', '.join(parts)} ms; its own work {spent['own'] * 1e3:.0f} ms")
    usual = statistics.median_low([spent["own"] for spent in ranks])
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank]["own"])
    if len(ranks) > 1 and ranks[slowest]["own"] >= STRAGGLER * usual:
        ratio = f" by {ranks[slowest]['own'] / usual:.1f} × the median" if usual else ""
        lines.append(f"  rank {slowest} is the slowest{ratio}; the others wait for it")
    elif len(ranks) > 1:
        lines.append(f"  no rank holds the others up: none has {STRAGGLER:g} × the own work of the median")
    return lines


def _write(folder: Path, told: Mapping[str, Any]) -> None:
    temp = folder / ".tmp-summary"
    temp.write_text(json.dumps(told, indent=1))
    temp.rename(folder / "summary.json")
