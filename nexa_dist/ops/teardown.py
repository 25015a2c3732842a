"""nexa teardown: runs stopped, Terraform destroy, sweep, and a receipt of what is proven gone."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.ops.context import Context
from nexa_dist.ops.provision import terraform_of
from nexa_dist.ops.runs import active, active_runs, stop
from nexa_dist.run import files
from nexa_dist.run.bundle import root as bundle_root
from nexa_dist.run.workspace import ClusterFolder, RunFolder

TRIES = 3


def teardown(ctx: Context, folder: ClusterFolder) -> dict[str, Any]:
    """Destroys the cluster and proves it. Safe to run twice, and after any interruption.

    Raises StillRunning, with what is left, when it cannot be proven; the folder then stays.
    """
    began = time.time()
    with folder.locked("teardown"):
        for run in active_runs(ctx, folder.name):
            with ctx.phase(f"stop {run.run_id}"), folder.journalled("stop", run=run.run_id):
                _stop(ctx, run)
        destroyed = _destroy(ctx, folder)
        with ctx.phase("sweep"), folder.journalled("sweep"):
            swept = _sweep(ctx, folder)
        listening = _listening(folder)
        resources = terraform_of(ctx, folder).resources() if folder.terraform.exists() else []
        left = {"resources": resources, "listening": listening, "processes": _sweep(ctx, folder)}
        receipt = {
            "cluster": folder.name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - began, 2),
            "nodes": [{key: node[key] for key in ("name", "address", "port")} for node in _nodes(folder)],
            "destroyed": destroyed,
            "swept": swept,
            "left": left,
            "cost_usd": _cost(folder, time.time()),
        }
        if any(left.values()):
            raise StillRunning(f"not everything is gone: {left}", hint="run nexa teardown again")
        folder.ledger("down", cost_usd=receipt["cost_usd"])
        return _archive(ctx, folder, receipt)


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


def _destroy(ctx: Context, folder: ClusterFolder) -> list[str]:
    terraform = terraform_of(ctx, folder)
    if not terraform.chdir.exists():
        return []
    with ctx.phase("terraform: destroy"), folder.journalled("terraform destroy"):
        try:
            resources = terraform.resources()
        except NexaError as error:  # a torn state: the sweep does without
            ctx.detail(f"the state cannot be read, sweeping instead: {error}")
            terraform.state.rename(terraform.state.with_suffix(".torn"))
            return []
        for attempt in range(TRIES if resources else 0):
            try:
                terraform.destroy(ctx.detail)
                break
            except NexaError as error:
                if attempt == TRIES - 1:
                    raise StillRunning(str(error), hint=error.hint) from error
                ctx.detail(f"try {attempt + 1} of {TRIES} failed, again: {error}")
    return resources


def _sweep(ctx: Context, folder: ClusterFolder) -> list[dict[str, Any]]:
    """Ends what a lost state or a killed command left: found by its mark, never by name. Answers what it ended."""
    nodes = folder.path / "nodes"
    if not nodes.is_dir():
        return []
    host = bundle_root() / "terraform" / "modules" / "local_node" / "host.py"
    swept = ctx.runner.run((sys.executable, "-I", str(host), "sweep", str(nodes)), timeout_s=120)
    if swept.code:
        raise StillRunning(f"the sweep failed: {swept.tail()}", hint="run nexa teardown again")
    return list(json.loads(swept.out))


def _nodes(folder: ClusterFolder) -> list[dict[str, Any]]:
    variables = folder.terraform / "nexa.tfvars.json"
    if not variables.exists():
        return []
    try:
        return [{"name": name, **node} for name, node in files.read_json(variables)["nodes"].items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise NexaError(f"{variables} is damaged: {error!r}", hint="nexa provision writes it anew") from error


def _listening(folder: ClusterFolder) -> list[str]:
    found = []
    for node in _nodes(folder):
        with socket.socket() as probe:
            probe.settimeout(2)
            if probe.connect_ex((node["address"], node["port"])) == 0:
                found.append(f"{node['address']}:{node['port']}")
    return found


def _cost(folder: ClusterFolder, now: float) -> float:
    ups = [e for e in files.read_lines(folder.path / "ledger.jsonl") if e["event"] == "up"]
    return round(ups[-1]["usd_per_hour"] * (now - ups[-1]["at"]) / 3600, 6) if ups else 0.0


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
