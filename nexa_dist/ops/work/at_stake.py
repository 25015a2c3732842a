"""Files at stake when a cluster's nodes go: checkpoints and files of its runs that are nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.active_runs import newest_events, recorded
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.table import is_off
from nexa_dist.ops.work import steps
from nexa_dist.ops.work.pulled import Pulled
from nexa_dist.ops.work.results import Left, Whole, look, wholes
from nexa_dist.plan.runs.results import counted, sized
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, by_node, connect, session
from nexa_dist.run.workspace import ClusterFolder, RunFolder

CONNECT_S = 4
LOOK_S = 20.0
"""Seconds for a node's answer: nobody waits long to end what costs money."""
MOST_RUNS = 200
"""Runs that are asked for, the newest."""


@dataclass
class Stake:
    """Lines about what would be lost, runs that have it, and why some nodes cannot be asked."""

    lines: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)


def at_stake(ctx: Context, folder: ClusterFolder, without: Collection[str] = ()) -> Stake:
    """Asks each node once. Nothing that goes wrong here keeps a node alive: it is said, and no more."""
    found = Stake()
    if not folder.json.exists():
        return found
    try:
        cluster = folder.load()
        if cluster.traits.scheduled and cluster.layout.scratch.startswith(f"{ctx.workspace.root}/"):
            return found  # it lies on the file system that we share with the nodes, and stays there
        known = _runs(ctx, cluster)
        nodes = [node for node in cluster.nodes if node.name not in without and _of_node(known, node.name)]
        if nodes:
            _ask(ctx, cluster, nodes, known, found)
    except (NexaError, OSError) as error:  # OSError: a full disk
        found.silent[""] = f"what the runs of {folder.name} have left cannot be told: {error}"
    return found


def _runs(ctx: Context, cluster: Cluster) -> list[tuple[RunFolder, Run]]:
    """Runs of all workspaces that use the cluster. A torn record keeps nobody."""
    known = [(run, record) for run, record in recorded(ctx, cluster.name, quiet=True) if record.attempts]
    return sorted(known, key=lambda one: one[0].run_id)[-MOST_RUNS:]


def _of_node(known: Sequence[tuple[RunFolder, Run]], node: str) -> list[tuple[RunFolder, Run]]:
    return [one for one in known if node in one[1].nodes]


def _ask(
    ctx: Context, cluster: Cluster, nodes: Sequence[Node], known: Sequence[tuple[RunFolder, Run]], found: Stake
) -> None:
    with session(ctx.runner, cluster) as ssh:

        def one(node: Node) -> list[Left] | str:
            try:
                link: Link = connect(ssh.by(node, f"ConnectTimeout={CONNECT_S}"), [node])[0]
                return look(link, [record for _, record in _of_node(known, node.name)], LOOK_S)
            except NexaError as error:
                off = is_off(ctx, cluster, node)
                return "" if off else f"what {node.name} holds is not known: {error}"

        answers = by_node(nodes, one)
    found.silent |= {name: answer for name, answer in answers.items() if isinstance(answer, str) and answer}
    by_run: dict[str, dict[str, Left]] = defaultdict(dict)
    for name, answer in answers.items():
        if not isinstance(answer, str):
            for (run, _), left in zip(_of_node(known, name), answer, strict=True):
                by_run[run.run_id][name] = left
    for run, record in known:
        _judge(ctx, cluster, run, record, by_run[run.run_id], found)


def _judge(ctx: Context, cluster: Cluster, run: RunFolder, record: Run, left: Mapping[str, Left], found: Stake) -> None:
    pulled = Pulled.of(run)
    newest = max(wholes(left), key=lambda whole: (whole.step, whole.durable), default=None)
    alone = [row for one in left.values() for row in one.files if not (row.kept and cluster.bucket)]
    lost = [row for row in alone if not pulled.holds_file(row)]
    words = []
    if newest and not _is_safe(ctx, cluster, run, record, newest, pulled):
        words.append(f"the checkpoint of step {newest.step} ({sized(newest.bytes)})")
    for what, other in (("", False), ("not named in outputs: ", True)):
        if rows := [row for row in lost if (row.kind == "other") == other]:
            words.append(what + counted(rows, names=True))
    if any(one.cut for one in left.values()):
        words.append("more files than can be looked through")
    if words:
        found.lines.append(f"{run.run_id}: {'; '.join(words)}")
        found.runs.append(run.run_id)


def _is_safe(ctx: Context, cluster: Cluster, run: RunFolder, record: Run, kept: Whole, pulled: Pulled) -> bool:
    """Tell whether a checkpoint outlives the nodes: here, in a folder that they do not take along, or in the bucket."""
    if pulled.holds_step(kept.step, kept.sha256) or (kept.durable and not cluster.traits.rents):
        return True
    if cluster.bucket and _said_durable(run) >= kept.step:
        return True
    if not cluster.bucket or ctx.dry:
        return False
    try:
        return kept.step in steps.in_bucket(ctx, cluster, record.run_id)
    except NexaError as error:
        ctx.say(f"warning: the bucket cannot be read from here: {error}")
        return False


def _said_durable(run: RunFolder) -> int:
    """The newest step of which rank 0 told that the bucket has it."""
    return max((event.get("durable") or 0 for event in newest_events(run)), default=0)
