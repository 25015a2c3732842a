"""Standard tasks by lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), a program of its own."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.stages.eval.config import Tasks

MOST_BYTES = 64 << 20
LINES = 15
SCHEMA = pa.schema([("task", pa.string()), ("metric", pa.string()), ("value", pa.float64()), ("stderr", pa.float64())])


def refuse_without() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "tasks: lm-eval is not in this environment", hint="environment: {packages: [lm-eval]} has it beside light"
        )


def measure(config: Tasks, model: Path, scratch: Path, seed: int, own: Path | None = None) -> dict[str, dict[str, Any]]:
    """Figures of each task by metric: value and standard error. `own` is a folder with tasks of the user's: their YAML
    and, by paths from there, their rows. Raises NexaError with lm-eval's last words."""
    argv = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model.absolute()}"]
    options = {
        "tasks": ",".join(config.names), "batch_size": config.batch, "output_path": scratch.absolute(), "seed": seed,
        "limit": config.limit, "num_fewshot": config.shots, "include_path": own,
    }  # fmt: skip
    argv += [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    try:
        done = subprocess.run(
            argv, cwd=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=config.max_minutes * 60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NexaError(
            f"tasks: not done within {config.max_minutes:g} minutes", hint="limit: takes fewer rows"
        ) from None
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-LINES:])
        raise NexaError(f"tasks: lm-eval ended with {done.returncode}:\n{said}")
    written = sorted(scratch.rglob("results*.json"))
    if not written or written[-1].stat().st_size > MOST_BYTES:
        raise NexaError(f"tasks: lm-eval left no results in {scratch}")
    return read(json.loads(written[-1].read_bytes()), config.names)


def read(told: Any, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """{task: {metric: {"value", "stderr"}}} of lm-eval's results. Raises NexaError for a task without a figure."""
    results = told.get("results") if isinstance(told, dict) else None
    found: dict[str, dict[str, Any]] = {}
    for task, figures in (results if isinstance(results, dict) else {}).items():
        made = _metrics(figures) if isinstance(figures, dict) else {}
        if made:
            found[str(task)] = made
    if missing := [name for name in names if name not in found]:
        raise NexaError(f"tasks: lm-eval has no figure of {', '.join(missing)}")
    return found


def rows(told: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each figure."""
    return [{"task": task, "metric": metric, **one} for task, all_ in told.items() for metric, one in all_.items()]


def _metrics(figures: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in figures.items():
        metric, _, way = key.partition(",")
        if metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        error = figures.get(f"{metric}_stderr,{way}")
        known = isinstance(error, int | float) and math.isfinite(error)
        if math.isfinite(value) and metric != "alias":
            made[metric if way in ("", "none") else f"{metric}:{way}"] = {
                "value": value,
                "stderr": error if known else None,
            }
    return made
