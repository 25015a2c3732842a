"""The nodes of a local cluster as they were made, whether they are on, and since when not.

Apart from local.py: who shows a bill asks too, and does not wait until Terraform and Ansible are imported.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops import ledger_file
from nexa_dist.ops.context import Context
from nexa_dist.plan.money import ledger
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.shape import record, table, text, whole

MADE = record({"nodes": table(text(200), record({"address": text(60), "port": whole(1, 65535)}), 10_000)})


def made_nodes(folder: ClusterFolder) -> list[dict[str, Any]]:
    variables = folder.terraform / "nexa.tfvars.json"
    if not variables.exists():
        return []
    found = files.read_shape(variables, MADE, hint="nexa provision writes it anew")
    return [{"name": name, **node} for name, node in found["nodes"].items()]


def answers(folder: ClusterFolder, name: str, address: str, port: int) -> bool:
    """Tell whether the node's own sshd listens there: whoever got the port after its end greets otherwise (host.py)."""
    try:
        host_key = (folder.ssh / "host_keys" / f"{name}.pub").read_bytes()
        with socket.create_connection((address, port), timeout=5) as connection:
            said = connection.makefile("rb").readline(255).rstrip()
    except OSError:
        return False
    return said.endswith(hashlib.sha256(host_key).hexdigest()[:16].encode())


def usage(ctx: Context, folder: ClusterFolder) -> float:
    """Nodes that were up and are off have ended: by their own deadline if that is past, else by now."""
    try:
        where = {row["name"]: (row["address"], row["port"]) for row in made_nodes(folder)}
    except (NexaError, KeyError):  # a damaged file: teardown ends them
        return ctx.now()
    made = {change.id for change in ledger.changes(ledger_file.read(folder.path)) if change.phase == "bootstrapping"}
    for period in ledger_file.open_periods(folder):
        if period.id in made and period.node in where and not answers(folder, period.node, *where[period.node]):
            due = _number(folder.path / "nodes" / period.node / "due" / "acts_unix")
            at = due if due and period.start_unix <= due <= ctx.now() else ctx.now()
            ledger_file.stop(folder, period, at, "it is off", "clock")
    return ctx.now()


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
