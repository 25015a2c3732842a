"""Where a job of Slurm keeps what it needs: in the workspace, which login host and nodes have to share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.run import files
from nexa_dist.run.workspace import RunFolder


def folder(run: RunFolder) -> Path:
    """What only the jobs of a run have: job.json, the specs of its newest attempt, what the script printed."""
    return run.path / "slurm"


def kept(run: RunFolder) -> dict[str, Any]:
    """job.json of a run: what was submitted. Raises NexaError when the run is no job of Slurm's."""
    path = folder(run) / "job.json"
    if not path.exists():
        raise NexaError(f"{run.run_id} is no job of Slurm's: there is no {path}")
    return files.read_object(path)
