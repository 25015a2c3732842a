"""nexa report: all that is known of one run, from what is kept here; no node is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_dist import shape, wire
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.node.protocol import FREQUENT
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import cost as costing
from nexa_dist.ops.money.cost import Ledger
from nexa_dist.plan.money.bill import slices
from nexa_dist.plan.runs.history import History, of_events, of_lines
from nexa_dist.plan.timeline import timeline
from nexa_dist.run import files
from nexa_dist.run.logs.reader import Reader
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact, redact_text

LOG_BYTES = 256 << 20
"""Bytes of one log or of one node's events that are read, from the beginning."""
NODES, TEST = shape.table(wire.NAME, wire.NAME, 4096), shape.record({"matrix": wire.MATRIX})
DIAGNOSIS = shape.record({"at_unix": wire.UNIX, "nodes": NODES, "test": TEST})
Read = Callable[[bytes], Mapping[str, float]]


def gather(ctx: Context, run: RunFolder, read: Read) -> dict[str, Any]:
    """The report of `nexa report --json`. `read` finds figures in a line of a script that reports none."""
    record = run.load()
    manifest: dict[str, Any] = {}
    with contextlib.suppress(NexaError):  # a run that goes on has none
        manifest = files.read_shape(run.manifest, wire.RESULT)
    try:
        ledger = costing.find(ctx, run.run_id)[0] if record.attempts else None
    except UsageError:
        ledger = None
    return {
        "run": run.run_id,
        "at_unix": ctx.now(),
        "state": "recovering" if record.pending else record.last.state if record.attempts else "not started",
        "cluster": record.cluster.name,
        "nodes": [node.name for node in record.cluster.nodes],
        "world_size": record.last.world_size if record.attempts else record.cluster.world_size,
        "attempts": _attempts(ctx, run, record, read),
        "timeline": _timeline(ledger) if ledger else None,
        "cost": costing.report(ctx, ledger) if ledger else None,
        "waste": ledger.waste.lines() if ledger else [],
        "bandwidth": _bandwidth(ctx, record, ledger),
        "manifest": {key: manifest.get(key) for key in ("model", "dataset", "checkpoint", "eval_report", "parallel")},
        "config": redact(_said(record.config)),
        "environment": _said(
            {
                **record.environment,
                "data": record.data,
                "provider": record.cluster.provider,
                "env_hash": record.cluster.env_hash,
                "hardware": record.last.hardware if record.attempts else {},
                "code_hash": record.code_hash,
                "package_hash": record.package_hash,
                "git_commit": record.git_commit,
            }
        ),
    }


def _attempts(ctx: Context, run: RunFolder, record: Run, read: Read) -> list[dict[str, Any]]:
    nodes = {path.name: of_events(_events(ctx, path)) for path in sorted(run.logs.glob("*")) if path.is_dir()}
    return [
        _attempt(
            ctx, run, row, {name: found[row.attempt] for name, found in nodes.items() if row.attempt in found},
            read, ours=bool(record.config.get("backend")),
        )
        for row in record.attempts
    ]  # fmt: skip


def _attempt(
    ctx: Context, run: RunFolder, row: Attempt, nodes: Mapping[str, History], read: Read, *, ours: bool
) -> dict[str, Any]:
    """`ours`: our own backend, whose lines hold every figure of every step that it logs; a script that reports figures
    is believed, and its lines are not asked."""
    told = next((found for found in nodes.values() if found.steps), History())
    points, source = told.points, "reported" if told.steps else ""
    if ours or not any(points.values()):
        node = next((name for name, (first, _) in row.ranks.items() if first == 0), "")
        lines = of_lines(_lines(ctx, run.logs / node / "rank_0" / f"attempt_{row.attempt}.log"), read)
        points, source = (lines, "log" if ours else "lines") if lines else (points, source)
    notices = [
        {"node": name, **notice, "step": told.step_at(notice["seen_unix"])}
        for name, found in nodes.items() for notice in found.notices
    ]  # fmt: skip
    return {
        "attempt": row.attempt,
        "state": row.state,
        "started_unix": row.started_unix,
        "ended_unix": row.ended_unix,
        "resume_step": row.resume_step,
        "last_step": told.steps[-1][1] if told.steps else None,
        "of": told.of,
        "nodes": list(row.ranks),
        "replaced": row.replaced,
        "changed": [redact_text(words) for words in row.changed],
        "cause": redact_text(row.why or row.cause),
        "notices": notices,
        "source": source,
        "points": points,
    }


def _events(ctx: Context, folder: Path) -> Iterator[dict[str, Any]]:
    """Events of one node. A machine that replaced another began them anew, and those of before are beside them."""
    for path in sorted(folder.glob("agent*.jsonl"), key=lambda path: (path.name == "agent.jsonl", path.name)):
        yield from wire.events(line for line in _lines(ctx, path) if not _is_of_others(line))


def _is_of_others(line: bytes) -> bool:
    """Tell whether a line is a heartbeat, or the progress of ranks that are not shown."""
    return line.startswith(FREQUENT[0]) or (line.startswith(FREQUENT[1]) and b'"0": ' not in line)


def _lines(ctx: Context, path: Path) -> Iterator[bytes]:
    for chunk in Reader(path).read(final=True, at_most_bytes=LOG_BYTES):
        yield from chunk.lines
    if path.exists() and path.stat().st_size > LOG_BYTES:
        ctx.say(f"warning: {path}: only its first {LOG_BYTES >> 20} MiB were read")


def _timeline(ledger: Ledger) -> dict[str, Any]:
    """Timeline of the report: phases of each machine, and the steps of the cluster's journal."""
    phases: list[dict[str, Any]] = []
    for piece in slices(ledger.events, ledger.now_unix):
        same = {"node": piece.period.node, "id": piece.period.id, "phase": piece.phase, "run": piece.run}
        if phases and phases[-1]["end_unix"] == piece.begin_unix and same.items() <= phases[-1].items():
            phases[-1]["end_unix"] = piece.end_unix
        else:
            phases.append({**same, "begin_unix": piece.begin_unix, "end_unix": piece.end_unix})
    steps = timeline(files.read_lines(ledger.folder / "journal.jsonl")) if ledger.folder else []
    return {"phases": phases, "steps": [{**row, "what": redact_text(row["what"])} for row in steps]}


def _bandwidth(ctx: Context, record: Run, ledger: Ledger | None) -> dict[str, Any] | None:
    """Gbit/s of each pair, from the newest diagnosis that measured them."""
    folder = ledger.folder if ledger and ledger.folder else ctx.workspace.cluster(record.cluster.name).path
    for path in [folder / "diag.json", *sorted((folder / "diag").glob("*.json"), reverse=True)]:
        with contextlib.suppress(NexaError):
            found = files.read_shape(path, DIAGNOSIS)
            names, matrix = list(found["nodes"]), found["test"]["matrix"]
            if [len(line) for line in matrix] == [len(names)] * len(names):
                return {"at_unix": found["at_unix"], "nodes": names, "gbps": matrix}
    return None


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of the file without those that say nothing."""
    deep = {key: _said(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in deep.items() if value not in (None, [], {}, "")}
