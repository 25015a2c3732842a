"""The evaluations of a workspace, each beside what its run cost: manifests of the stage eval, wherever they lie.

Only what was asked the same way can be compared: a board is one evaluation's config with the same rows, and for scores
the same judge with the same prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.run import files
from nexa_dist.run.workspace import RunFolder
from nexa_dist.shape import Check, lenient, maybe, number, record, rows, table, text, whole

PLACES = ("runs/*/outputs/stage_output", "evals/*", "versions/objects/*")
MANIFEST = "manifest.json"
NAME = text(200)
FIGURE = lenient(maybe(number()))
SPAN = lenient(maybe(rows(number(), 2, 2)))
FIGURES = record({}, {"mean": FIGURE, "value": FIGURE, "interval": SPAN, "missing": whole(), "count": whole()})
TOLD = record(
    {"run": NAME, "rows": whole()},
    {
        "scores": table(NAME, FIGURES, 100), "wins": FIGURES, "perplexity": FIGURES,
        "tasks": table(NAME, table(NAME, record({"value": number()}, {"stderr": maybe(number())}), 100), 1000),
        "judge": record({}, {"warning": text(2000)}),
    },
)  # fmt: skip
KEPT: Check = record(
    {"stage": NAME, "name": NAME, "key": NAME, "config_sha256": NAME, "ended_unix": number(),
     "inputs": table(NAME, record({"sha256": NAME}), 100)},
    {"usd": maybe(number()), "seconds": number(), "run_id": maybe(NAME), "notes": record({}, {
        "speed": record({}, {"tokens_per_s": number()}),
        "judge": record({}, {"model": text(256), "sha256": NAME}),
    })},
)  # fmt: skip
DSS, PERPLEXITY = "dss", "perplexity"
LESS_IS_BETTER = (PERPLEXITY,)


def gather(ctx: Context) -> list[dict[str, Any]]:
    """Boards, the one with the newest evaluation first, each with its rows, the best first. Of the same evaluation of a
    run the newest counts. What is damaged is said and passed over."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in _folders(ctx.workspace.root):
        try:
            if files.read_object(folder / MANIFEST).get("stage") != "eval":
                continue
            manifest = files.read_shape(folder / MANIFEST, KEPT)
            row = _row(ctx, manifest, files.read_shape(_figures(folder), TOLD), folder)
        except NexaError as error:
            ctx.say(f"warning: passed over: {error}")
            continue
        known = found.get((row["board"], row["run"]))
        if known is None or known["at_unix"] < row["at_unix"]:
            found[row["board"], row["run"]] = row
    boards: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(found.values(), key=lambda row: -row["at_unix"]):
        boards.setdefault(row["board"], []).append(row)
    return [_board(name, rows) for name, rows in boards.items()]


def _folders(root: Path) -> Iterator[Path]:
    for pattern in PLACES:
        for path in sorted(root.glob(f"{pattern}/{MANIFEST}")):
            yield path.parent


def _figures(folder: Path) -> Path:
    """The figures of an evaluation, evals/NAME_RUN.json."""
    found = next(iter(sorted(folder.glob("evals/*.json"))), None)
    if found is None:
        raise NexaError(f"{folder}: no evals/*.json is in it")
    return found


def _row(ctx: Context, manifest: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    notes = manifest.get("notes", {})
    judge = notes.get("judge", {})
    figures = {name: _of(found, "mean") for name, found in told.get("scores", {}).items()}
    figures |= {"wins": _of(told["wins"], "mean")} if "wins" in told else {}
    figures |= {PERPLEXITY: _of(told["perplexity"], "value")} if "perplexity" in told else {}
    for task, metrics in told.get("tasks", {}).items():
        figures |= {
            f"{task}/{metric}": {"value": one["value"], "interval": _around(one)} for metric, one in metrics.items()
        }
    rows_sha = manifest["inputs"].get("rows", {}).get("sha256", "")
    return {
        "board": " ".join(filter(None, (manifest["name"], manifest["config_sha256"][:8], rows_sha[:8]))),
        "name": manifest["name"], "rows": told["rows"], "judge": judge.get("model"),
        "judge_sha256": judge.get("sha256"), "run": told["run"], "figures": figures,
        "run_usd": _cost(ctx, told["run"]), "eval_usd": _eval_usd(ctx, manifest),
        "tokens_per_s": notes.get("speed", {}).get("tokens_per_s"), "at_unix": manifest["ended_unix"],
        "warning": told.get("judge", {}).get("warning", ""), "folder": str(folder),
    }  # fmt: skip


def _of(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {"value": found.get(key), "interval": found.get("interval"), "missing": found.get("missing", 0)}


def _around(one: Mapping[str, Any]) -> list[float] | None:
    error = one.get("stderr")
    return None if error is None else [one["value"] - 1.96 * error, one["value"] + 1.96 * error]


def _eval_usd(ctx: Context, manifest: Mapping[str, Any]) -> float | None:
    """What the evaluation cost itself, in US dollars: its judge, and its nodes, as far as that is known."""
    own = _cost(ctx, manifest["run_id"]) if manifest.get("run_id") else None
    known = [usd for usd in (manifest.get("usd"), own) if usd is not None]
    return math.fsum(known) if known else None


def _cost(ctx: Context, run: str) -> float | None:
    """What the evaluated run cost, in US dollars, where it is a run of this workspace."""
    path = RunFolder(ctx.workspace.root / "runs" / run).manifest
    if not path.exists():
        return None
    try:
        return dict(files.read_shape(path, record({}, {"cost_usd": FIGURE}))).get("cost_usd")
    except NexaError:
        return None


def _board(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows by the first figure that they have: dss, else perplexity, else the first."""
    names = list(dict.fromkeys(figure for row in found for figure in row["figures"]))
    by = next((one for one in (DSS, PERPLEXITY) if one in names), names[0] if names else "")

    def order(row: Mapping[str, Any]) -> float:
        value = row["figures"].get(by, {}).get("value")
        return math.inf if value is None else value if by in LESS_IS_BETTER else -value

    ranked = sorted(found, key=order)
    first = found[0]
    return {"board": name, "name": first["name"], "judge": first["judge"], "judge_sha256": first["judge_sha256"],
            "by": by, "figures": names, "rows": ranked,
            "warnings": sorted({row["warning"] for row in found if row["warning"]})}  # fmt: skip
