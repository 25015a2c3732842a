"""nexa cost: what a cluster or a run has cost, while it lives and when it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.active_runs import progress, recorded
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.money.record_usage import Reading
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.plan.aws import prices
from nexa_dist.plan.money import ledger as money_ledger
from nexa_dist.plan.money import phases as money_phases
from nexa_dist.plan.money.bill import Bill, Share, bill
from nexa_dist.plan.money.waste import Waste, waste
from nexa_dist.run import files
from nexa_dist.run.record import Run
from nexa_dist.run.workspace import ClusterFolder, RunFolder

SLACK_S = 600.0
"""A run is of the cluster whose nodes were on at its start, by clocks that may differ by so much."""


@dataclass(frozen=True)
class Ledger:
    """The ledger of one cluster, with what its runs tell. `folder` is where it lies; none for one's own hosts."""

    name: str
    folder: Path | None
    events: list[dict[str, Any]]
    runs: tuple[Run, ...]
    now_unix: float

    @property
    def bill(self) -> Bill:
        return bill(self.events, self.now_unix)

    @property
    def waste(self) -> Waste:
        region = _region(self.folder)
        kept = any(record.cluster.bucket for record in self.runs)
        return waste(self.events, self.now_unix, lambda kind: prices.on_demand(kind, region), kept)


def of_cluster(ctx: Context, folder: Path, reading: Reading) -> Ledger:
    """A reading of the cluster's ledger, and the records of its runs."""
    name = folder.name if folder.parent.name == "clusters" else folder.name.rpartition("_")[0]
    found = money_ledger.periods(reading.events)
    begin = min((period.start_unix for period in found), default=reading.now_unix)
    ends = [period.stop_unix for period in found]
    end = reading.now_unix if not ends or None in ends else max(end for end in ends if end is not None)
    begun = [record for _, record in recorded(ctx) if record.attempts and record.cluster.name == name]
    runs = tuple(record for record in begun if begin - SLACK_S <= record.attempts[0].started_unix <= end + SLACK_S)
    told = [event for record in runs for event in _phases(record)]
    return Ledger(name, folder, money_ledger.clean([*reading.events, *told]), runs, reading.now_unix)


def _rows(record: Run) -> list[dict[str, Any]]:
    return [row.to_json() for row in record.attempts]


def _phases(record: Run) -> list[dict[str, Any]]:
    return money_phases.events(record.run_id, _rows(record))


def find(ctx: Context, named: str) -> tuple[Ledger, str]:
    """The ledger of the cluster or run called `named`, and the run. Raises UsageError when neither is known."""
    folders, root = {folder.name: folder for folder in ctx.workspace.clusters()}, ctx.workspace.root
    if named in folders:
        return of_living(ctx, folders[named]), ""
    if gone := _gone(root, named):
        return _of_gone(ctx, gone[-1]), ""
    if named:
        run = ctx.workspace.run(named)
        return _of_run(ctx, run), run.run_id
    if not folders and (gone := _gone(root, "*")):
        return _of_gone(ctx, gone[-1]), ""
    return of_living(ctx, ctx.workspace.only_cluster()), ""


def _gone(root: Path, name: str) -> list[Path]:
    """Folders of clusters of this name that were torn down, the newest last: their time stands behind the name."""
    if not name or "/" in name:
        return []
    kept = [path.parent for path in (root / ".nexa" / "history").glob(f"{name}_*/ledger.jsonl")]
    mine = [folder for folder in kept if name == "*" or folder.name.rpartition("_")[0] == name]
    return sorted(mine, key=lambda folder: folder.name.rpartition("_")[2])


def of_living(ctx: Context, folder: ClusterFolder) -> Ledger:
    """The ledger of a living cluster; without the cloud's newest word when it cannot be asked."""
    try:
        reading = usage.refresh(ctx, folder)
    except NexaError as error:
        ctx.say(f"warning: as of the last time that the cloud was asked: {error}")
        reading = usage.known(ctx, folder)
    return of_cluster(ctx, folder.path, reading)


def _of_gone(ctx: Context, folder: Path) -> Ledger:
    return of_cluster(ctx, folder, Reading(usage.read(folder), ctx.now()))


def _of_run(ctx: Context, run: RunFolder) -> Ledger:
    """The ledger of the cluster on which the run was; made of its attempts alone when no ledger of that is known."""
    record = run.load()
    name = record.cluster.name
    living = [folder for folder in ctx.workspace.clusters() if folder.name == name]
    for ledger in (*(of_living(ctx, f) for f in living), *(_of_gone(ctx, f) for f in _gone(ctx.workspace.root, name))):
        if any(known.run_id == run.run_id for known in ledger.runs) and ledger.bill.nodes:
            return ledger
    if not record.attempts:
        raise UsageError(f"{run.run_id} has not begun, so it has cost nothing")
    return _own_hosts(record, ctx.now())


def _own_hosts(record: Run, now: float) -> Ledger:
    """One's own hosts cost their price for the time of the attempts."""
    rates = {node.name: node.price_usd_per_hour for node in record.cluster.nodes}
    events = _phases(record)
    for row in _rows(record):
        for node in row.get("ranks") or ():
            ident = {"node": node, "id": f"{node}@{row['attempt']}", "source": "clock"}
            priced = {"offer": "static", "usd_per_hour": rates.get(node), "disk_gb": 0, "public_ip": False}
            at = money_phases.began_unix(row)
            events.append({"event": "node_start", "at": at, **ident, **priced})
            if ended := money_phases.ended_unix(row):
                events.append({"event": "node_stop", "at": ended, **ident, "why": row["state"]})
    return Ledger(record.cluster.name, None, money_ledger.clean(events), (record,), now)


def report(ctx: Context, ledger: Ledger) -> dict[str, Any]:
    """The report of `nexa cost --json`."""
    made = ledger.bill
    region = _region(ledger.folder)
    rows = [_run_row(ctx, record, made) for record in ledger.runs]
    told = made.to_json()
    return {
        "cluster": ledger.name,
        **{key: value for key, value in told.items() if key != "runs"},
        "runs": rows,
        "tags": _by_tag(rows),
        "egress_usd_per_gb": prices.book().egress.usd.get(region) if region else None,
        "waste": ledger.waste.to_json(),
    }


def _region(folder: Path | None) -> str:
    if folder is None:
        return ""
    try:
        if folder.parent.name == "clusters":
            scope = known_scope(ClusterFolder(folder))
            return scope.region if scope else ""
        return str(files.read_object(folder / "receipt.json").get("region") or "")
    except NexaError:
        return ""


def _run_row(ctx: Context, record: Run, made: Bill) -> dict[str, Any]:
    """Cost of one run, in all and by what it got for it."""
    run_id = record.run_id
    share, phases = made.run(run_id), made.runs.get(run_id, {})
    manifest = files.object_or_empty(ctx.workspace.root / "runs" / "manifests" / f"{run_id}.json")
    report, tags = manifest.get("eval_report"), manifest.get("tags")
    told = report if isinstance(report, dict) else {}
    steps = money_phases.steps(_rows(record)) or money_ledger.number(told.get("steps"))
    steps = steps or progress(RunFolder(ctx.workspace.root / "runs" / run_id))["step"]
    tokens = money_ledger.number(told.get("tokens"))
    known = not made.unpriced
    return {
        "run": run_id,
        "state": record.last.state,
        "attempts": len(record.attempts),
        "seconds": round(share.seconds, 1),
        "usd": round(share.usd, 6) if known else None,
        "phases": {name: part.to_json() for name, part in phases.items()},
        "steps": steps,
        "tokens": tokens,
        "usd_per_step": share.usd / steps if steps and known else None,
        "usd_per_million_tokens": share.usd / tokens * 1e6 if tokens and known else None,
        "tags": [str(tag) for tag in (tags if isinstance(tags, list) else record.config.get("tags") or ())],
    }


def _by_tag(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Share] = {}
    for row in rows:
        for tag in row["tags"]:
            found[tag] = found.get(tag, Share()) + Share(row["seconds"], row["usd"] or 0.0)
    return {tag: share.to_json() for tag, share in sorted(found.items())}
