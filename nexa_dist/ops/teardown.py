"""nexa teardown: runs stopped, Terraform destroy, sweep, and a receipt of what is proven gone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_FAILED, NexaError, StillRunning
from nexa_dist.ops import aws_end, cost, local, meter
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import active, active_runs, stop
from nexa_dist.plan.aws import Site
from nexa_dist.run import files
from nexa_dist.run.ansible import end_left_over
from nexa_dist.run.workspace import ClusterFolder, RunFolder


def teardown(ctx: Context, folder: ClusterFolder, site: Site | None = None) -> dict[str, Any]:
    """Destroys the cluster and proves it. Safe to run twice, and after any interruption. `site`: an aws cluster's.

    Raises StillRunning, with what is left, when it cannot be proven; the folder then stays.
    """
    began = time.time()
    with folder.locked("teardown"):
        end_left_over(folder.path / "ansible")
        for run in active_runs(ctx, folder.name):
            with ctx.phase(f"stop {run.run_id}"), folder.journalled("stop", run=run.run_id):
                _stop(ctx, run)
        ended = _destroyed_aws(ctx, folder, site) if site else local.destroy(ctx, folder)
        receipt = {
            "cluster": folder.name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - began, 2),
            **ended,
        }
        if any(receipt["left"].values()):
            files.write_json(folder.path / "receipt.json", receipt)
            left = "; ".join(str(row) for rows in receipt["left"].values() for row in rows)
            raise StillRunning(
                f"not everything is gone: {left}", hint=f"run again: nexa teardown --cluster {folder.name}"
            )
        meter.end_all(ctx, folder, "teardown")
        receipt |= _costs(ctx, folder)
        folder.ledger("down", cost_usd=receipt["cost_usd"])
        return _archive(ctx, folder, receipt)


def _destroyed_aws(ctx: Context, folder: ClusterFolder, site: Site) -> dict[str, Any]:
    """aws_end.destroy; a cloud that cannot be asked has confirmed nothing."""
    try:
        return aws_end.destroy(ctx, folder, site)
    except NexaError as error:
        if error.code != EXIT_FAILED:
            raise
        raise StillRunning(f"not proven gone: {error}", hint=error.hint) from error


def may_exist(folder: ClusterFolder) -> bool:
    """Whether something was ever begun from this folder: a plan alone leaves only keys and sources."""
    marks = (folder.json, folder.path / "config.json", folder.path / "nodes", folder.path / "journal.jsonl")
    return any(mark.exists() for mark in (*marks, folder.terraform / "terraform.tfstate"))


def forget(folder: ClusterFolder) -> None:
    """Removes a folder in which nothing was begun."""
    if folder.path.exists():
        with folder.locked("teardown"):
            shutil.rmtree(folder.path)


def _stop(ctx: Context, run: RunFolder) -> None:
    try:
        stop(ctx, run)
    except NexaError as error:  # the nodes are about to go anyway; their processes go with them
        ctx.detail(f"not stopped in order: {error}")
        record = run.load()
        if not active(run):
            return
        record["attempts"][-1] |= {"state": "stopped", "cause": "teardown", "ended_unix": time.time()}
        run.save(record)


def _costs(ctx: Context, folder: ClusterFolder) -> dict[str, Any]:
    """What it cost in all: `cost_usd` is None where an instance has no known price."""
    ledger = cost.of_cluster(ctx, folder.path, meter.known(ctx, folder))
    made = ledger.bill
    usd = None if made.cost_usd is None else round(made.cost_usd, 6)
    return {"cost_usd": usd, "cost": made.to_json(), "waste": {**ledger.waste.to_json(), "lines": ledger.waste.lines()}}


def _archive(ctx: Context, folder: ClusterFolder, receipt: dict[str, Any]) -> dict[str, Any]:
    """Keeps receipt, journal and ledger below .nexa/history; keys and state go."""
    history = ctx.workspace.root / ".nexa" / "history" / f"{folder.name}_{receipt['at'].replace(':', '')}"
    history.mkdir(parents=True, exist_ok=True)
    receipt["receipt"] = str((history / "receipt.json").relative_to(ctx.workspace.root))
    for name in ("journal.jsonl", "ledger.jsonl", "config.json"):
        if (folder.path / name).exists():
            shutil.copy2(folder.path / name, history / name)
    files.write_json(history / "receipt.json", receipt)
    gone: Path = folder.path
    shutil.rmtree(gone)
    return receipt
