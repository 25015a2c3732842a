"""Parts of the environment `light`, and its name in a run's record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexa_dist.model import Cluster
from nexa_dist.plan.light import environment_hash, freeze
from nexa_dist.run import bundle

LOCK = Path("docker/lock/train.txt")
TORCH = Path("docker/cuda_torch.txt")
BACKEND = "auto"
PYTHONS = [f"3.{minor}" for minor in range(11, 16)]


def env_hash(python: str) -> str:
    """Name of the training environment on nodes with this Python (major.minor)."""
    root = bundle.root()
    return environment_hash((root / LOCK).read_bytes(), (root / TORCH).read_bytes(), python, BACKEND)


def told(cluster: Cluster) -> dict[str, Any]:
    """The environment of a cluster; its freeze, if our lock is the one that it was made from."""
    if not cluster.env_hash:
        return {}
    told: dict[str, Any] = {"name": "light", "hash": cluster.env_hash}
    if python := next((one for one in PYTHONS if env_hash(one) == cluster.env_hash), ""):
        texts = [(bundle.root() / file).read_text(encoding="utf-8") for file in (LOCK, TORCH)]
        told |= {"python": python, "freeze": freeze(*texts)}
    return told
