"""libaio and its headers for tests, which on a node come by `apt: [libaio-dev]`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

from nexa_dist.ops.providers.local import shared_folder

NONE = "libaio-dev is not installed, and apt-get download does not bring it"


def variables() -> dict[str, str] | None:
    """With which a compiler and the loader find it; None: `NONE`. Where the machine has none it is unpacked where local
    nodes keep what DeepSpeed compiled with it: that is compiled anew, for minutes, when a header has another place."""
    if Path("/usr/include/libaio.h").exists():
        return {}
    there = Path(shared_folder()) / "libaio"
    if not there.exists() and not _unpack(there):
        return None
    (library,) = there.rglob("libaio.so")
    found = {"CPATH": str(there / "usr" / "include"), "LIBRARY_PATH": str(library.parent)}
    return {**found, "LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")}


def _unpack(there: Path) -> bool:
    there.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=there.parent) as room:
        got = subprocess.run(["apt-get", "download", "libaio-dev", "libaio1"], cwd=room, capture_output=True)
        if got.returncode:
            return False
        for package in Path(room).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "root"], cwd=room, check=True)
        with contextlib.suppress(OSError):  # another test was faster
            Path(room, "root").rename(there)
    return True
