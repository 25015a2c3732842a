"""The run that a queue begins next, made ready while the one before goes on: it has a name, and on every node an
interpreter with torch loaded, which its ranks are forked from. Checks, code and record are made when it begins."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from nexa_dist.config.load import recorded_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.queue import Queue, Row
from nexa_dist.ops.runs.agent_spec import Job
from nexa_dist.ops.runs.launch import FORGET_S, Prepared
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.plan.ranks import assign_ranks
from nexa_dist.plan.runs.layer import PYPROJECT, layer_of
from nexa_dist.run.code import archive
from nexa_dist.run.ssh.connections import Link, on_all
from nexa_dist.run.workspace import RunFolder, Workspace

READY_AFTER_S = 2.0
"""Seconds from the start of a run until the next is made ready: its own ranks come to work first."""
READY_S = 20.0
"""Seconds for a node to say that it loads; who waits for the end of a run may have to wait for that."""


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


class NextRun:
    """The run that comes next in a queue, made ready in a thread of its own."""

    def __init__(self, ctx: Context, queue: Queue) -> None:
        self.ctx, self.queue = dataclasses.replace(ctx, say=lambda _: None), queue
        self.ready: Ready | None = None
        self.over, self.thread = threading.Event(), threading.Thread()

    def make_ready(self, config: TrainConfig, before: Prepared) -> None:
        """Begins to make ready what comes after this run, which has just begun."""

        def make() -> None:
            with contextlib.suppress(NexaError, OSError):  # it only begins later then
                if not self.over.wait(READY_AFTER_S):
                    self._make(config, before)

        self.over.clear()
        self.thread = threading.Thread(target=make, daemon=True)
        self.thread.start()

    def _make(self, before: TrainConfig, began: Prepared) -> None:
        workspace = self.ctx.workspace
        rows = [row for row in self.queue.load().rows if row.state == "waiting" and row.root == str(workspace.root)]
        if not rows or rows[0].run_id:
            return
        config = settled(self.ctx, recorded_train(rows[0].config, rows[0].id))
        if alike(before, config):
            self.ready = reserve(workspace, self.queue, rows[0], config, began.links)
            if self.ready:
                load(self.ready, config, began)

    def take(self, row_id: str = "") -> Ready | None:
        """What is ready of this row, when the run before is over; that of another one goes."""
        self.over.set()
        if self.thread.ident:
            self.thread.join()
        ready, self.ready = self.ready, None
        if ready and ready.row_id != row_id:
            ready.forget(self.queue)
            return None
        return ready


def alike(before: TrainConfig, config: TrainConfig) -> bool:
    """Tell whether what the run before was given holds for this one as well: its nodes, its environment, its secrets.
    The Python of a node that is its user's own may change meanwhile, so it is loaded at the launch."""
    same = all(getattr(before, key) == getattr(config, key) for key in ("nodes", "environment", "secrets"))
    return same and config.keep_warm and config.environment != "none"


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
        link.call("probe", message={"python": link.python, "scratch": scratch, "warm": warm}, timeout_s=READY_S)

    on_all(ready.links, begin)


def _name(queue: Queue, row_id: str, was: str, run_id: str) -> bool:
    """Writes into the queue which folder a waiting row has; false when it does not wait, or has another."""
    with queue.changing() as kept:
        for at, row in enumerate(kept.rows):
            if row.id == row_id and row.state == "waiting" and row.run_id == was:
                kept.rows[at] = dataclasses.replace(row, run_id=run_id)
                return True
    return False
