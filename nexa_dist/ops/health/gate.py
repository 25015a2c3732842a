"""Newest diagnosis of a cluster, on disk; and the gate before a run. Every launch imports this module, so it is
light."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder


def path_of(folder: ClusterFolder) -> Path:
    return folder.path / "diag.json"


def identity(node: Node) -> str:
    """Names the machine behind the node: another one in its place is no longer what was diagnosed."""
    return node.instance_id or f"{node.address}:{node.port}"


def newest(folder: ClusterFolder) -> dict[str, Any] | None:
    """The verdict that counts; None when there is none, or nothing whole."""
    try:
        found = files.read_json(path_of(folder)) if path_of(folder).exists() else None
    except NexaError:
        return None
    return dict(found) if isinstance(found, dict) and isinstance(found.get("findings"), list) else None


def failed(verdict: Mapping[str, Any] | None, cluster: Cluster) -> dict[str, list[Mapping[str, Any]]]:
    """Failures that still hold, by node: those of machines that are no longer there do not. Findings about nobody in
    particular hold as long as no machine was changed."""
    if verdict is None:
        return {}
    same = {node.name for node in cluster.nodes if verdict.get("nodes", {}).get(node.name) == identity(node)}
    whole = len(same) == len(cluster.nodes) == len(verdict.get("nodes", {}))
    names = {node.name for node in cluster.nodes}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for finding in verdict["findings"]:
        if finding["severity"] == "fail" and (finding["node"] in same or (whole and finding["node"] not in names)):
            found.setdefault(finding["node"], []).append(finding)
    return found


def refuse_unfit(folder: ClusterFolder, cluster: Cluster) -> None:
    """Raises NexaError when the newest diagnosis failed: a run there would cost money and fail too."""
    verdict = newest(folder)
    found = failed(verdict, cluster)
    if not found or verdict is None:
        return
    words = "\n".join(
        f"{node}: {finding['cause']}: {finding['seen']} (expected: {finding['expected']})"
        for node, findings in found.items()
        for finding in findings
    )
    age = max(0.0, time.time() - verdict["at_unix"]) / 60
    raise NexaError(
        f"nexa diag found cluster {cluster.name} unfit {age:.0f} min ago:\n{words}",
        hint="nexa diag looks again, nexa provision mends or replaces it; nexa run --ignore-diag runs all the same"
        " (on a node that lacks GPUs: with nproc_per_node in train.yaml as many as are there)",
    )
