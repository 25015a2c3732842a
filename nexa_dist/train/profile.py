"""Where the time of a step goes: torch.profiler on some steps of every rank, a summary, traces of some ranks. And at
all times each rank's own time a step, which needs neither a profiler nor a synchronisation.

Forward, the whole step and saving are ranges of ours; the rest are torch's own names. A collective waits for the
slowest rank, so a rank's own work is what is left of its step without its collectives.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from nexa_dist.config.trainer import ProfileConfig
from nexa_dist.straggler import STRAGGLER, straggler
from nexa_dist.train import control
from nexa_dist.train.env import RankEnv

FOLDER = "profile"
"""Below the run's folder: rank_N.trace.json.gz (chrome://tracing, Perfetto) and summary.json."""
OWN_STEPS = 20
"""The median of so many steps is told: one that paused for a save or a first call says nothing."""
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
    if found := straggler({rank: spent["own"] for rank, spent in enumerate(ranks)}, least_s=0.0):
        ratio = f" by {found.own_s / found.median_s:.1f} × the median" if found.median_s else ""
        lines.append(f"  rank {found.rank} is the slowest{ratio}; the others wait for it")
    elif len(ranks) > 1:
        lines.append(f"  no rank holds the others up: none has {STRAGGLER:g} × the own work of the median")
    return lines


def _write(folder: Path, told: Mapping[str, Any]) -> None:
    temp = folder / ".tmp-summary"
    temp.write_text(json.dumps(told, indent=1))
    temp.rename(folder / "summary.json")


class OwnTime:
    """The wait for data and the forward pass of the last steps.

    All ranks end a step together, since the backward pass waits for the slowest; until then each is by itself. Of the
    model inside DDP's wrapper, which may wait for buffers first. Where the forward pass gathers parameters (FSDP,
    ZeRO-3; `forward` False) it waits too, and only the wait for data is told. On a GPU the forward pass is measured by
    events, read a step later.
    """

    def __init__(
        self, model: torch.nn.Module, *, forward: bool, cuda: bool, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock, self._cuda, self._forward = clock, cuda, forward
        self._spent = self._began = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._earlier: list[tuple[Any, Any]] = []
        self._last: deque[float] = deque(maxlen=OWN_STEPS)
        if forward:
            model.register_forward_pre_hook(self._begin)
            model.register_forward_hook(self._end)

    def reading(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, with the time that each is waited for."""
        while True:
            began = self._clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._spent += self._clock() - began
            yield batch

    def step(self) -> float | None:
        """After each step: the median seconds of the last ones; None before the first that was measured."""
        spent, self._spent = self._spent, 0.0
        done, self._earlier, self._events = self._earlier, self._events, []
        if self._cuda and self._forward:
            spent += sum(begin.elapsed_time(end) for begin, end in done if end.query()) / 1e3
        if done or not self._cuda or not self._forward:
            self._last.append(spent)
        return statistics.median(self._last) if self._last else None

    def _begin(self, model: torch.nn.Module, _given: Any) -> None:
        self._began = self._clock()
        if self._cuda and model.training:
            self._events.append((_event(), _event()))

    def _end(self, model: torch.nn.Module, _given: Any, _made: Any) -> None:
        if not model.training:
            return  # an evaluation is no step
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._spent += self._clock() - self._began


def _event() -> Any:
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
