"""The nodes of a job by steps of the job."""

from __future__ import annotations

from dataclasses import dataclass

from nexa_dist.model import Node
from nexa_dist.run.ssh.connections import Ssh


@dataclass(frozen=True)
class Steps(Ssh):
    """Commands on the nodes as steps of the job that we are in, beside whatever runs there. `Node.instance_id` is the
    name that Slurm has for it."""

    def argv(self, node: Node, *options: str) -> tuple[str, ...]:
        """srun up to the command, which a shell reads as ssh's would."""
        where = ("--nodes=1", "--ntasks=1", f"--nodelist={node.instance_id}")
        return ("srun", "--overlap", "--quiet", "--input=all", *where, "sh", "-c")
