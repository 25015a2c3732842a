"""Folders of a job's nodes: in the workspace, which login host and nodes share."""

from __future__ import annotations

import re

from nexa_dist.errors import UsageError
from nexa_dist.model import Layout
from nexa_dist.run.workspace import Workspace

PLAIN = re.compile(r"/[A-Za-z0-9._/+@=-]+")
"""Paths that mean the same to a shell and to sbatch, which puts numbers in for %."""


def layout(workspace: Workspace, python: str) -> Layout:
    """Folders of every node: all of them on the file system of the workspace. Raises UsageError for a path that sbatch
    would read otherwise."""
    base = workspace.root / ".nexa" / "slurm"
    if bad := next((path for path in (str(base), python) if not PLAIN.fullmatch(path)), ""):
        raise UsageError(f"{bad!r} has characters that sbatch or a shell reads otherwise", hint="use a plain path")
    return Layout(python, f"{base}/scratch", f"{base}/shared", f"{base}/durable")
