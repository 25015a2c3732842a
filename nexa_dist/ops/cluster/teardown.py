"""nexa teardown: runs stopped, Terraform destroy, sweep, and a receipt of what is proven gone."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, StillRunning, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.cluster import mesh_end
from nexa_dist.ops.cluster.provision import refuse_other_provider
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import cost
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.providers.aws import end as aws_end
from nexa_dist.ops.providers.static.record import Record
from nexa_dist.ops.providers.table import of_folder, provider_of
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.run import files
from nexa_dist.run.ansible import end_left_over
from nexa_dist.run.workspace import ClusterFolder, RunFolder

Stop = Callable[[Context, RunFolder], object]

GONE = "a host that is gone for good is left out by --without NODE"


@dataclass(frozen=True)
class Doomed:
    """Things that a teardown of a cluster ends: what was begun from its folder, and the runs that go on there."""

    folder: ClusterFolder
    scope: AwsScope | None
    """An aws cluster's."""
    provider: str
    elsewhere: str
    """Another workspace that has claimed the cluster."""
    runs: tuple[RunFolder, ...]

    def __str__(self) -> str:
        held = f", held by {self.elsewhere}," if self.elsewhere else ""
        runs = f" and the active runs {', '.join(run.run_id for run in self.runs)}" if self.runs else ""
        return f"cluster {self.folder.name}{held}{runs}"

    @property
    def nodes(self) -> list[str]:
        """Each node as far as this folder knows it; a cluster.json that is torn names none."""
        with contextlib.suppress(NexaError):
            return [f"{n.name} {n.instance_id or n.address}" for n in self.folder.load().nodes]
        return []


def doomed(ctx: Context, folder: ClusterFolder, config: ClusterConfig | None) -> Doomed | None:
    """Find what `teardown` would end; None when nothing was ever begun. `config`: the cluster's file, where it was
    named.

    Raises UsageError when the file is of another provider than the cluster, StillRunning when nobody can tell whose
    the cluster is.
    """
    begun = folder.may_exist()
    if config and begun:
        refuse_other_provider(folder, config)
    try:
        scope = aws_end.scope_of(ctx, folder, config)
        elsewhere = aws_end.holder_elsewhere(ctx, scope) if scope else ""
    except UsageError:
        raise
    except NexaError as error:
        raise StillRunning(f"what is left of {folder.name} cannot be told: {error}", hint=error.hint) from error
    if not scope and not begun:
        return None
    provider = "aws" if scope else of_folder(folder)
    return Doomed(folder, scope, provider, elsewhere, tuple(active_runs(ctx, folder.name)))


def teardown(ctx: Context, folder: ClusterFolder, scope: AwsScope | None, stop: Stop) -> dict[str, Any]:
    """Destroys the cluster and proves it. Safe to run twice, and after any interruption. `scope`: an aws cluster's;
    `stop` ends a run on every node (`ops.runs.stop`).

    Raises StillRunning, with what is left, when it cannot be proven; the folder then stays.
    """
    began, folder = time.time(), replace(folder, ending=True)
    with folder.locked("teardown"):
        end_left_over(folder.path / "ansible")
        for run in active_runs(ctx, folder.name):
            with ctx.phase(f"stop {run.run_id}"), folder.journalled("stop", run=run.run_id):
                _stop(ctx, run, _own(folder), stop)
        parted = _left_mesh(ctx, folder)
        ended = _destroyed(ctx, folder, scope)
        if parted.undone:
            ended["left"]["mesh"] = list(parted.undone)
        receipt = {
            "cluster": folder.name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - began, 2),
            **ended,
            **({"mesh": parted.told} if parted.told else {}),
        }
        if any(receipt["left"].values()):
            with contextlib.suppress(OSError):  # a full disk
                files.write_json(folder.path / "receipt.json", receipt)
            left = "; ".join(str(row) for rows in receipt["left"].values() for row in rows)
            again = f"run again: nexa teardown --cluster {folder.name}"
            hint = f"{again}; {GONE}" if receipt["left"].get("hosts") else again
            if receipt.get("in_the_way"):
                hint = f"what is in the way is not ours to end: ask who made it, remove it, then {hint}"
            known = any(rows for kind, rows in receipt["left"].items() if kind != "unseen")
            raise StillRunning(f"not {'everything is' if known else 'proven'} gone: {left}", hint=hint)
        usage.end_all(ctx, folder, "teardown")
        receipt |= _costs(ctx, folder)
        folder.ledger("down", cost_usd=receipt["cost_usd"])
        return _archive(ctx, folder, receipt)


def _own(folder: ClusterFolder) -> Record:
    """Raises StillRunning when nobody knows what is on the user's hosts."""
    try:
        return Record.of(folder)
    except NexaError as error:
        raise StillRunning(str(error), hint=error.hint) from error


def _left_mesh(ctx: Context, folder: ClusterFolder) -> mesh_end.Left:
    """The nodes leave the mesh while they can still be asked to."""
    record = _own(folder)
    if record.claimed:
        known = Cluster.from_json(record.cluster)
        nodes = tuple(node for node in known.nodes if node.name in record.claimed)
        return mesh_end.leave(ctx, folder, replace(known, nodes=nodes, ssh_config=str(folder.ssh_config)), record.tmp)
    try:
        made = folder.load() if folder.json.exists() else None
    except NexaError:  # a torn cluster.json: what is left of it in a tailnet goes by its name
        made = None
    return mesh_end.leave(ctx, folder, made)


def _destroyed(ctx: Context, folder: ClusterFolder, scope: AwsScope | None) -> dict[str, Any]:
    return provider_of("aws" if scope else of_folder(folder)).destroy(ctx, folder, scope)


def forget(folder: ClusterFolder) -> None:
    """Removes a folder in which nothing was begun."""
    if folder.path.exists():
        with folder.locked("teardown"):
            shutil.rmtree(folder.path)


def _stop(ctx: Context, run: RunFolder, own: Record, stop: Stop) -> None:
    try:
        stop(ctx, run)
    except (NexaError, OSError) as error:  # the nodes are about to go anyway; their processes go with them
        hint = error.hint if isinstance(error, NexaError) else ""
        if own.hosts and not own.given_up:  # but the user's own hosts would go on training
            raise StillRunning(str(error), hint=f"{hint}; {GONE}") from error
        ctx.detail(f"not stopped in order: {error}")
        with contextlib.suppress(OSError):
            record = run.load()
            if record.active:
                record.close("stopped", "teardown")


def _costs(ctx: Context, folder: ClusterFolder) -> dict[str, Any]:
    """Cost of the cluster in all: `cost_usd` is None where an instance has no known price."""
    ledger = cost.of_cluster(ctx, folder.path, usage.known(ctx, folder))
    made = ledger.bill
    usd = None if made.cost_usd is None else round(made.cost_usd, 6)
    return {"cost_usd": usd, "cost": made.to_json(), "waste": {**ledger.waste.to_json(), "lines": ledger.waste.lines()}}


def _archive(ctx: Context, folder: ClusterFolder, receipt: dict[str, Any]) -> dict[str, Any]:
    """Keeps receipt, journal, ledger and newest diagnosis below .nexa/history; keys and state go. On a full disk they
    go first, and what has no room even then stays in the folder: that nothing is left is true all the same."""
    for again in (False, True):
        try:
            return _moved(ctx, folder, receipt)
        except OSError as error:
            if again:
                ctx.say(f"warning: nothing is left, but the receipt cannot be written: {error}")
                return {**receipt, "receipt": ""}
            for name in ("terraform", "ansible", "diag", "nodes"):
                shutil.rmtree(folder.path / name, ignore_errors=True)
    raise AssertionError


def _moved(ctx: Context, folder: ClusterFolder, receipt: dict[str, Any]) -> dict[str, Any]:
    history = ctx.workspace.root / ".nexa" / "history" / f"{folder.name}_{receipt['at'].replace(':', '')}"
    history.mkdir(parents=True, exist_ok=True)
    receipt["receipt"] = str((history / "receipt.json").relative_to(ctx.workspace.root))
    for name in ("journal.jsonl", "ledger.jsonl", "config.json", "own.json", "diag.json"):
        if (folder.path / name).is_file():
            shutil.copy2(folder.path / name, history / name)
    files.write_json(history / "receipt.json", receipt)
    shutil.rmtree(folder.path)
    return receipt
