"""A program that others can see: Popen answers before the kernel shows what was started in /proc."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def begun(argv: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
    """The program, once its command line and environment can be read by others; the environment comes last."""
    child: subprocess.Popen[bytes] = subprocess.Popen(argv, **more)
    while child.poll() is None and not Path(f"/proc/{child.pid}/environ").read_bytes():
        time.sleep(0.001)
    return child
