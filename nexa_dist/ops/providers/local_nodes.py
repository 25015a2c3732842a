"""The nodes of a local cluster as they were made, and whether they are on. Apart from local.py: who shows a bill asks
too, and does not wait until Terraform and Ansible are imported."""

from __future__ import annotations

import hashlib
import socket
from typing import Any

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
    """Whether the node's own sshd listens there: whoever got the port after its end greets otherwise (host.py)."""
    try:
        host_key = (folder.ssh / "host_keys" / f"{name}.pub").read_bytes()
        with socket.create_connection((address, port), timeout=5) as connection:
            said = connection.makefile("rb").readline(255).rstrip()
    except OSError:
        return False
    return said.endswith(hashlib.sha256(host_key).hexdigest()[:16].encode())
