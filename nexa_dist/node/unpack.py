"""The command `unpack`: brings code to a node."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from typing import Any

from .base import unfinished


def unpack(target: str) -> dict[str, Any]:
    """Makes `target` from a tar.gz on stdin: a temporary sibling first, then one rename."""
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    temporary = unfinished(target, os.getpid())
    shutil.rmtree(temporary, ignore_errors=True)  # of somebody who was killed and had our pid
    os.makedirs(temporary, mode=0o700)  # a project may have no file
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(temporary, filter="data")
        else:
            archive.extractall(temporary)  # noqa: S202  (older Pythons; our own archive, over ssh)
    try:
        os.rename(temporary, target)
    except OSError:  # another run made it meanwhile: the name is its content's hash, so it is the same
        shutil.rmtree(temporary)
    return {"path": target}
