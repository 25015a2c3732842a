"""How far this rank is, for its node's agent to read: one small file, rewritten in place. Standard library only.

A user's own script may call `report` after every step; without NEXA_PROGRESS nothing happens. A rank that has
never reported is never taken to hang, so the first report belongs to where training begins, not before.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from typing import Any

SIZE_BYTES = 512
MIN_INTERVAL_S = 0.05
"""Faster steps are not all written; the last one of a training always is."""

_lock = threading.Lock()
_state: dict[str, Any] = {}
_file = -1
_path = ""
_written = 0.0


def report(
    step: int,
    of: int | None = None,
    loss: float | None = None,
    tokens_per_s: float | None = None,
    *,
    learning_rate: float | None = None,
    held_out: float | None = None,
    own_s: float | None = None,
) -> None:
    """`step` optimizer steps of `of` are done; `held_out` is the loss on what is not trained on; `own_s`: seconds of a
    step that are this rank's own work, without waiting in collectives. What is None stays as it was reported before.
    """
    figures = {"loss": loss, "tokens_per_s": tokens_per_s, "learning_rate": learning_rate, "held_out": held_out,
               "own_s": own_s}  # fmt: skip
    given = {"of": of, **{name: _finite(value) for name, value in figures.items()}}
    last = of is not None and step >= of
    _update({"step": step, **{key: value for key, value in given.items() if value is not None}}, urgent=last)


def note(**values: Any) -> None:
    """Rank 0's other facts: `saved` and `durable` (newest whole checkpoints, steps), `saving`."""
    _update(values, urgent=True)


def _update(values: dict[str, Any], *, urgent: bool) -> None:
    global _written
    path = os.environ.get("NEXA_PROGRESS")
    if not path:
        return
    with _lock:
        _state.update(values)
        now = time.monotonic()
        if "step" in _state and (urgent or _path != path or now - _written >= MIN_INTERVAL_S):
            _written = now
            _write(path)


def _write(path: str) -> None:
    """One write of always the same length at offset 0; a reader that meets half of one tries again."""
    global _file, _path
    body = {"of": None, "loss": None, "tokens_per_s": None, **_state, "at": round(time.time(), 3)}
    try:
        if _path != path:
            _file, _path = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644), path
        os.pwrite(_file, json.dumps(body).encode().ljust(SIZE_BYTES)[:SIZE_BYTES], 0)
    except OSError:
        _path = ""  # a full disk or a missing folder must not end the training; tried again at the next report


def _finite(value: float | None) -> float | None:
    """JSON has no nan; the log line tells it."""
    return float(f"{float(value):.6g}") if value is not None and math.isfinite(value) else None
