"""libaio and its headers for tests, which on a node come by `apt: [libaio-dev]`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

NONE = "libaio-dev is not installed, and apt-get download does not bring it"


def variables(room: Path) -> dict[str, str] | None:
    """With which a compiler and the loader find it, unpacked in `room` where the machine has none; None: `NONE`."""
    if Path("/usr/include/libaio.h").exists():
        return {}
    got = subprocess.run(["apt-get", "download", "libaio-dev", "libaio1"], cwd=room, capture_output=True, text=True)
    if got.returncode:
        return None
    for package in room.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package.name, "root"], cwd=room, check=True)
    (library,) = (room / "root").rglob("libaio.so")
    found = {"CPATH": str(room / "root" / "usr" / "include"), "LIBRARY_PATH": str(library.parent)}
    return {**found, "LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")}
