"""light, the training environment of every cluster: its name, and what is in it."""

from __future__ import annotations

import hashlib
import re


def environment_hash(lock: bytes, torch: bytes, python: str, backend: str) -> str:
    """Name of the environment: what it is made of. `python` is major.minor."""
    return hashlib.sha256(b"\0".join((lock, torch, python.encode(), backend.encode()))).hexdigest()[:16]


def freeze(*requirements: str) -> list[str]:
    """The packages of hashed requirement files, `name==version` each."""
    return re.findall(r"^[a-z0-9][a-z0-9._-]*==[^\s\\]+", "\n".join(requirements), re.MULTILINE)
