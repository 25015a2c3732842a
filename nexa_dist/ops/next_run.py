"""The run that a queue begins next, made ready while the one before goes on: it has a name, and on every node an
interpreter with torch loaded, which its ranks are forked from. Checks, code and record are made when it begins."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.queue import Queue, Row
from nexa_dist.ops.runs.agent_spec import Job
from nexa_dist.ops.runs.launch import FORGET_S, Prepared
from nexa_dist.plan.ranks import assign_ranks
from nexa_dist.plan.runs.layer import PYPROJECT, layer_of
from nexa_dist.run.code import archive
from nexa_dist.run.ssh.connections import Link, on_all
from nexa_dist.run.workspace import RunFolder, Workspace


@dataclass(frozen=True)
class Ready:
    """Folder that the next run will have here, and the links to the nodes that have one too."""

    row_id: str
    folder: RunFolder
    links: Sequence[Link]

    def forget(self, queue: Queue) -> None:
        """Nothing of it is needed: its interpreters end, and its folders go. One whose node does not answer ends by
        itself soon after the run before. A run that was begun is left alone."""
        if self.folder.json.exists():
            return

        def forget(link: Link) -> None:
            with contextlib.suppress(NexaError):
                link.call("forget", link.run_dir(self.folder.run_id), timeout_s=FORGET_S)

        on_all(self.links, forget)
        shutil.rmtree(self.folder.path, ignore_errors=True)
        if queue.path.exists():
            _name(queue, self.row_id, self.folder.run_id, "")


def alike(before: TrainConfig, config: TrainConfig) -> bool:
    """Tell whether what the run before was given holds for this one as well: its nodes, its environment, its secrets.
    The Python of a node that is its user's own may change meanwhile, so it is loaded at the launch."""
    same = all(getattr(before, key) == getattr(config, key) for key in ("nodes", "environment", "secrets"))
    return same and config.launcher == "direct" and config.environment != "none"


def reserve(workspace: Workspace, queue: Queue, row: Row, config: TrainConfig, links: Sequence[Link]) -> Ready | None:
    """The folder of the next run; None when it does not wait any more. It has no record, so nothing takes it for a run,
    and the queue names it, so that who takes the queue over removes it."""
    folder = workspace.new_run(config.stage, config.name)
    if _name(queue, row.id, "", folder.run_id):
        return Ready(row.id, folder, links)
    folder.path.rmdir()
    return None


def load(ready: Ready, config: TrainConfig, before: Prepared) -> None:
    """Begins to load the interpreters, which stand back for the run `before`. Raises NexaError when a node cannot be
    told. What does not fit at the launch (other variables, another environment or package) is loaded anew there."""
    if not before.brought.environment or layer_of(config, *archive.look(before.archives[0], PYPROJECT)):
        return  # what has no hash may change meanwhile; a layer is the run's own, and made before its ranks
    draft = assign_ranks(before.links[0].ssh.cluster, 0, config.nproc_per_node)
    project, package = before.archives
    job = Job(config, ready.folder.run_id, 1, project, package, None, before.secrets, before.brought)
    nodes = {node.node.name: node for node in draft.nodes}

    def begin(link: Link) -> None:
        warm = job.preloading(draft, nodes[link.node.name], link)
        warm["after"] = before.places[link.node.name].run_dir
        scratch = link.path(link.ssh.cluster.layout.scratch)
        link.call("probe", message={"python": link.python, "scratch": scratch, "warm": warm}, timeout_s=90)

    on_all(ready.links, begin)


def _name(queue: Queue, row_id: str, was: str, run_id: str) -> bool:
    """Writes into the queue which folder a waiting row has; false when it does not wait, or has another."""
    with queue.changing() as kept:
        for at, row in enumerate(kept.rows):
            if row.id == row_id and row.state == "waiting" and row.run_id == was:
                kept.rows[at] = replace(row, run_id=run_id)
                return True
    return False
