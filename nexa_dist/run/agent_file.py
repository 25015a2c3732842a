"""The node agent as one file: the package `nexa_dist.node` in a zip that Python runs."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "node"
NAME = "agent.pyz"
INSIDE = "nexa_agent"
"""Not `nexa_dist`: a rank's PYTHONPATH has that, in the version that the run was started with."""
MAIN = f"import sys\n\nfrom {INSIDE}.main import main\n\nsys.exit(main(sys.argv[1:]))\n"
LONG_AGO = (1980, 1, 1, 0, 0, 0)


@functools.cache
def content() -> bytes:
    """The file, byte for byte the same for the same sources. Stored, not packed: opening it should cost nothing."""
    texts = {f"{INSIDE}/{path.relative_to(PACKAGE)}": path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"__main__.py": MAIN.encode(), **texts}.items():
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return out.getvalue()


@functools.cache
def sha256() -> str:
    return hashlib.sha256(content()).hexdigest()


def digest() -> str:
    """Names this version of the agent: the first 16 hex digits of its SHA-256."""
    return sha256()[:16]
