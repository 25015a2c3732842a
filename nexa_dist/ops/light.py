"""light, the training environment of every cluster: its name, and what is in it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from nexa_dist.model import Cluster
from nexa_dist.run import bundle

LOCK = Path("docker/lock/train.txt")
TORCH = Path("docker/cuda_torch.txt")
BACKEND = "auto"
PYTHONS = [f"3.{minor}" for minor in range(11, 16)]


def environment_hash(lock: bytes, torch: bytes, python: str, backend: str) -> str:
    """Name of the environment: what it is made of. `python` is major.minor."""
    return hashlib.sha256(b"\0".join((lock, torch, python.encode(), backend.encode()))).hexdigest()[:16]


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
        texts = "\n".join((bundle.root() / file).read_text(encoding="utf-8") for file in (LOCK, TORCH))
        packages = re.findall(r"^[a-z0-9][a-z0-9._-]*==[^\s\\]+", texts, re.MULTILINE)
        told |= {"python": python, "freeze": packages}
    return told
