"""run.json as a file has it, and as it is read."""

from __future__ import annotations

from typing import Any

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run import files
from nexa_dist.run.record import Run
from nexa_dist.run.workspace import RunFolder

CLUSTER = Cluster("c", "static", (Node("n0", "198.51.100.1", 1),), Layout("p", "s", "s", "d"))


def put(run: RunFolder, data: dict[str, Any]) -> Run:
    files.write_json(run.json, data, 0o600)
    return run.load()
