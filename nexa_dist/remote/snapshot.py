"""Facts of a host that decide what a training does there: system, kernel, driver, packages, the environment's freeze.

{} → {"system", "kernel", "machine", "driver", "gpus", "packages": {name: version}, "python", "freeze": {name: version}}

The interpreter that runs this is that of the environment. Nothing that changes by itself (load, free space, time) is
told, nor any variable. Standard library only, Python 3.9+.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any


def main(_: dict[str, Any], __: Callable[..., None]) -> dict[str, Any]:
    gpus = said("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader").splitlines()
    drivers = [line.split(",")[0].strip() for line in gpus]
    listed = said("dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${binary:Package}\t${Version}\n").splitlines()
    rows = [line.split("\t") for line in listed if line.startswith("ii")]
    return {
        "system": system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "driver": drivers[0] if drivers else "",
        "gpus": [line.partition(",")[2].strip() for line in gpus],
        "packages": {row[1]: row[2] for row in rows if len(row) == 3},
        "python": platform.python_version(),
        "freeze": freeze(),
    }


def freeze() -> dict[str, str]:
    """Version of each distribution that this interpreter imports; of two the first on its path, which it takes."""
    found: dict[str, str] = {}
    for one in metadata.distributions(path=[path for path in sys.path if os.path.isdir(path)]):
        name = one.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), str(one.version))
    return found


def system() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            told = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    except (OSError, ValueError):
        return platform.system()
    return told.get("PRETTY_NAME", platform.system()).strip('"')


def said(*argv: str) -> str:
    """Output of a program; empty where it is not there or does not work."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=30, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
