"""Folders of the tests' own, which go when they end: for what nexa remembers of its user (marks, consents), and for
what programs leave in the temporary folder when they are killed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "nt-"
"""Short, since Unix sockets in the folder may have about 100 bytes."""


def own_places() -> None:
    """For this process and those that it starts; the first one removes the folder at its end."""
    if Path(os.environ.get("TMPDIR", "")).name.startswith(PREFIX):
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # what a failed test left stays
    folder, mine = Path(tempfile.mkdtemp(prefix=PREFIX)), os.getpid()
    (folder / "state").mkdir()
    os.environ |= {"TMPDIR": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    tempfile.tempdir = str(folder)

    def remove() -> None:
        if os.getpid() == mine:  # not a fork that ends
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
