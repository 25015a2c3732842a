"""Cost of time on the nodes."""

from __future__ import annotations

from nexa_dist.model import Cluster


def gpu_hours(ranks: int, seconds: float) -> float:
    """Rank-hours: each rank holds one GPU (or, on CPU nodes, one slot) for `seconds`."""
    return ranks * max(seconds, 0.0) / 3600


def cost_usd(cluster: Cluster, seconds: float) -> float:
    """Price of all nodes for `seconds`, in USD; nodes are billed whether they train or wait."""
    return cluster.usd_per_hour * max(seconds, 0.0) / 3600
