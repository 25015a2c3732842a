"""nexa pull: a run's checkpoint, result and files, from its nodes or, where they are gone, from the bucket."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.work import kept, results, steps
from nexa_dist.ops.work.pulled import Pulled
from nexa_dist.ops.work.results import PARTS, Fetched
from nexa_dist.ops.work.steps import Found
from nexa_dist.run import files
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, Ssh, reach, session
from nexa_dist.run.workspace import RunFolder


@dataclass(frozen=True)
class Wish:
    """Wish of a pull: files of a run, and the folder that gets them; `step` is None for the newest checkpoint."""

    folder: Path
    step: int | None = None
    everything: bool = False


@dataclass
class Answer:
    """Answer of a pull: what the nodes have of the run, and afterwards what came. `silent`: why nodes were not
    asked."""

    found: list[Found]
    fetched: Fetched
    silent: dict[str, str] = field(default_factory=dict)
    checkpoint: dict[str, Any] | None = None
    result: Path | None = None
    why: str = ""
    """Why no checkpoint came, though there is one."""


def pull(ctx: Context, run: RunFolder, wish: Wish) -> Answer:
    """Brings it; a dry run only looks. Raises UsageError for a checkpoint that is nowhere."""
    record = run.load()
    with session(ctx.runner, record.cluster) as ssh:
        links, silent = _links(ctx, ssh, record)
        left, mute = results.look_all(links, record)
        links = [link for link in links if link.node.name in left]
        found = steps.choose(steps.find(ctx, record, links, left), wish.step, run.run_id)
        left = kept.with_bucket(ctx, record, left, wish.folder)
        fetched = results.choose(left, wish.everything, Pulled.of(run).at(wish.folder), wish.folder, float("inf"))
        answer = Answer(found, fetched, silent | mute)
        if not ctx.dry:
            _bring(ctx, run, links, record, answer, wish)
    return answer


def _bring(ctx: Context, run: RunFolder, links: Sequence[Link], record: Run, answer: Answer, wish: Wish) -> None:
    folder = wish.folder
    files.make_folder(folder)
    with results.pulling(run):
        pulled = Pulled.of(run)
        if answer.found:
            with ctx.phase(f"checkpoint of step {answer.found[0].step} from {answer.found[0].where}"):
                try:
                    answer.checkpoint = steps.fetch(ctx, record, answer.found, pulled.at(folder), folder)
                except NexaError as error:
                    answer.why = str(error)
                pulled.save(run)
        first = [link for link in links if link.node.name == record.cluster.nodes[0].name]
        if result := results.read_result(ctx, first, record) if first else {}:
            answer.result = folder / "result.json"
            files.write_json(answer.result, result)
        results.bring(ctx, run, links, record, answer.fetched, folder, float("inf"))
        kept.bring(ctx, run, record, answer.fetched, folder, float("inf"))
        if not answer.why and not answer.fetched.failed:
            shutil.rmtree(folder / PARTS, ignore_errors=True)  # also of an older pull that nobody went on with


def _links(ctx: Context, ssh: Ssh, record: Run) -> tuple[list[Link], dict[str, str]]:
    """Links to the nodes of the run; nobody is asked for those of a cluster that is gone."""
    nodes = [node for node in record.cluster.nodes if node.name in record.nodes]
    if record.cluster.traits.makes and not ctx.workspace.cluster(record.cluster.name).json.exists():
        return [], {node.name: f"{node.name} is gone: cluster {record.cluster.name} was torn down" for node in nodes}
    links, silent = reach(ssh, nodes)
    gone = set(record.nodes) - {node.name for node in nodes}
    return links, silent | {name: f"{name} is gone: the run went on without it" for name in sorted(gone)}
