"""What a rank of scripts/bench_train notes of itself, in `marks.RANK.json` of the folder NEXA_BENCH_MARKS."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

FOLDER = "NEXA_BENCH_MARKS"
WARM = "NEXA_BENCH_WARM"
"""Steps before tokens/s are counted."""


class Marks:
    """Unix seconds of `first` (before the first step of this process), `warm`, `stepped` (the end of the last step
    before the first save) and `saved`; `steps` from warm to stepped and their `cpu_s`, with the threads of this
    process; `total` steps of the process; the losses logged."""

    def __init__(self) -> None:
        self._noted: dict[str, Any] = {"losses": []}
        self._warm = int(os.environ[WARM])
        self._steps, self._cpu_s = 0, 0.0

    def begin(self) -> None:
        self._noted.setdefault("first", now())

    def stepped(self) -> None:
        """After each step, before a save."""
        self._steps += 1
        if self._steps == self._warm:
            self._noted["warm"], self._cpu_s = now(), time.process_time()

    def before_save(self) -> None:
        if "saved" not in self._noted:
            self._noted |= {"stepped": now(), "steps": self._steps - self._warm}
            self._noted["cpu_s"] = time.process_time() - self._cpu_s

    def after_save(self) -> None:
        self._noted.setdefault("saved", now())

    def loss(self, value: float) -> None:
        self._noted["losses"].append(value)

    def write(self) -> None:
        """With the peak of this rank's memory: `peak_bytes`, allocated on the GPU or (without one) resident."""
        import torch

        gpu = torch.cuda.is_available()
        self._noted["total"] = self._steps
        self._noted["peak_bytes"] = torch.cuda.max_memory_allocated() if gpu else resident_peak()
        path = Path(os.environ[FOLDER], f"marks.{os.environ.get('RANK', '0')}.json")
        path.write_text(json.dumps(self._noted))


def now() -> float:
    """Unix seconds, after all that was asked of the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def resident_peak() -> int:
    """VmHWM, in bytes. Not ru_maxrss, which begins with what torchrun had at the fork."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
