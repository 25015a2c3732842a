"""Nodes of a job: their interpreter, their folders, and commands on them by steps of the job."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

from nexa_dist.errors import UsageError
from nexa_dist.model import Layout, Node
from nexa_dist.run.ssh.connections import Ssh
from nexa_dist.run.workspace import Workspace

PLAIN = re.compile(r"/[A-Za-z0-9._/+@=-]+")
"""Paths that mean the same to a shell and to sbatch, which puts numbers in for %."""


def interpreter(named: str | None) -> str:
    """Interpreter on every node, ours where none is named. Raises UsageError when it is not here, by the same path."""
    python = named or sys.executable
    if not os.access(python, os.X_OK):
        raise UsageError(f"slurm.python: {python} cannot be started here", hint="login host and nodes have it alike")
    return python


def layout(workspace: Workspace, python: str) -> Layout:
    """Folders of every node: all of them on the file system of the workspace. Raises UsageError for a path that sbatch
    would read otherwise."""
    base = workspace.root / ".nexa" / "slurm"
    if bad := next((path for path in (str(base), python) if not PLAIN.fullmatch(path)), ""):
        raise UsageError(f"{bad!r} has characters that sbatch or a shell reads otherwise", hint="use a plain path")
    return Layout(python, f"{base}/scratch", f"{base}/shared", f"{base}/durable")


@dataclass(frozen=True)
class Steps(Ssh):
    """Commands on the nodes as steps of the job that we are in, beside whatever runs there. `Node.instance_id` is the
    name that Slurm has for it."""

    def argv(self, node: Node, *options: str) -> tuple[str, ...]:
        """srun up to the command, which a shell reads as ssh's would."""
        where = ("--nodes=1", "--ntasks=1", f"--nodelist={node.instance_id}")
        return ("srun", "--overlap", "--quiet", "--input=all", *where, "sh", "-c")
