"""The user's own hosts given back as they were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.static.make import call, claim
from nexa_dist.ops.providers.static.record import Record
from nexa_dist.run import agent_file
from nexa_dist.run.ssh import connections
from nexa_dist.run.workspace import ClusterFolder


def give_up(folder: ClusterFolder, names: Sequence[str]) -> None:
    """Does without these hosts from here on: they will never answer again. Raises UsageError for any that is none."""
    with folder.locked("teardown"):
        record = Record.of(folder)
        if unknown := [name for name in names if name not in record.hosts]:
            raise UsageError(
                f"cluster {folder.name} has no host of yours called {', '.join(unknown)}",
                hint=f"hosts: {', '.join(record.hosts) or 'none'}",
            )
        with folder.journalled("give up", hosts=list(names)):
            gone = {name: replace(record.hosts[name], given_up=True) for name in names}
            replace(record, hosts={**record.hosts, **gone}).save(folder)


def destroy(ctx: Context, folder: ClusterFolder, scope: Any = None) -> dict[str, Any]:
    """Takes away what was added to the hosts. Answers what was removed, what stays and why, and what is left to do:
    hosts that do not answer, processes that live."""
    record = Record.of(folder)
    cluster = replace(Cluster.from_json(record.cluster), ssh_config=str(folder.ssh_config))
    todo = [node for node in cluster.nodes if node.name in record.claimed]
    ask = {"act": "release", "names": _names(ctx, record, folder.name), "tidy": record.tmp}

    def release(node: Node) -> dict[str, Any] | NexaError:
        try:
            mine = claim(record.id, node.name, record.hosts[node.name])
            return call(ssh, node, record.python, {**mine, **ask}, timeout_s=600)
        except NexaError as error:
            return error

    with ctx.phase(f"give back {len(todo)} hosts"), folder.journalled("release", hosts=[n.name for n in todo]):
        with connections.session(ctx.runner, cluster) as ssh:
            answers = connections.by_node(todo, release)
        told = {name: answer for name, answer in answers.items() if not isinstance(answer, NexaError)}
        done = [name for name, answer in told.items() if not answer["processes"]]
        hosts = {n: replace(host, released=host.released or n in done) for n, host in record.hosts.items()}
        try:
            replace(record, hosts=hosts).save(folder)
        except OSError as error:  # a full disk; what is given back twice is given back
            ctx.say(f"warning: what was given back is not written down: {error}")
    for name, answer in told.items():
        ctx.detail(f"{name}: {len(answer['removed'])} things removed")
    kept = [
        f"{name}: {row['path']}, {row['files']} files, {row['bytes'] / 1e6:.1f} MB: {row['why']}"
        for name, answer in told.items()
        for row in answer["stays"]
    ]
    kept += [f"{name}: what was added there, since it was given up" for name in record.given_up]
    if record.system_changes:
        kept.append("on every host: packages and settings of the system that provision brought (system_changes)")
    return {
        "nodes": [
            {"name": node.name, "address": node.address, "port": node.port}
            for node in cluster.nodes
            if node.name not in record.given_up
        ],
        "removed": {name: answer["removed"] for name, answer in told.items()},
        "kept": kept,
        "left": {
            "hosts": [f"{a} ({a.hint})" if a.hint else str(a) for a in answers.values() if isinstance(a, NexaError)],
            "processes": [f"{n}: processes {a['processes']}" for n, a in told.items() if a["processes"]],
        },
    }


def _names(ctx: Context, record: Record, cluster: str) -> dict[str, list[str]]:
    """Names of what the bootstraps of this cluster, and the runs of this workspace on it, have brought to the hosts."""
    runs: list[str] = []
    code: set[str] = set()
    data: set[str] = set()
    for run in ctx.workspace.runs():
        try:
            found = run.load()
        except NexaError:  # torn: its folder is named by its id all the same
            runs.append(run.run_id)
            continue
        if found.cluster.name == cluster:
            runs.append(run.run_id)
            code |= {found.code_hash, found.package_hash} - {""}
            data |= {str(row["id"]) for row in found.data.values() if isinstance(row, dict) and "id" in row}
    agents = {*record.agents, agent_file.digest()}
    folders = [*runs, *(f"{run}.{node}" for run in runs for node in record.hosts)]
    return {"runs": folders, "envs": list(record.envs), "agent": list(agents), "code": list(code), "data": list(data)}
