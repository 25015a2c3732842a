"""What nexa remembers of its user (marks, consents) lies in a folder of the tests' own, not in the user's."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "nexa-tests-state-"


def own_state() -> None:
    """For this process and those that it starts; the first one removes the folder at its end."""
    if not Path(os.environ.get("XDG_STATE_HOME", "")).name.startswith(PREFIX):
        folder = tempfile.mkdtemp(prefix=PREFIX)
        os.environ["XDG_STATE_HOME"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
