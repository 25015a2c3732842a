"""Where a job of Slurm keeps what it needs: in the workspace, which login host and nodes have to share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Layout
from nexa_dist.run import files
from nexa_dist.run.workspace import RunFolder, Workspace

PLAIN = re.compile(r"/[A-Za-z0-9._/+@=-]+")
"""Paths that mean the same to a shell and to sbatch, which puts numbers in for %."""


def layout(workspace: Workspace, python: str) -> Layout:
    """Folders of every node: all of them on the file system of the workspace. Raises UsageError for a path that sbatch
    would read otherwise."""
    base = workspace.root / ".nexa" / "slurm"
    if bad := next((path for path in (str(base), python) if not PLAIN.fullmatch(path)), ""):
        raise UsageError(f"{bad!r} has characters that sbatch or a shell reads otherwise", hint="use a plain path")
    return Layout(python, f"{base}/scratch", f"{base}/shared", f"{base}/durable")


def folder(run: RunFolder) -> Path:
    """What only the jobs of a run have: job.json, the specs of its newest attempt, what the script printed."""
    return run.path / "slurm"


def kept(run: RunFolder) -> dict[str, Any]:
    """job.json of a run: what was submitted. Raises NexaError when the run is no job of Slurm's."""
    path = folder(run) / "job.json"
    if not path.exists():
        raise NexaError(f"{run.run_id} is no job of Slurm's: there is no {path}")
    return files.read_object(path)
