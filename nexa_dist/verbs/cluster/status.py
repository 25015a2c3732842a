"""nexa status: clusters, their nodes and active runs, as they are now."""

from __future__ import annotations

from argparse import Namespace as Arguments
from typing import Any

from nexa_dist.errors import EXIT_FAILED, EXIT_OK, NexaError
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.runs import status as running
from nexa_dist.ops.runs.summary import summary
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, find_folder

NOT_UP = {
    "planned": "planned: nothing was made; nexa provision makes it",
    **{state: f"{state}: run nexa provision or nexa teardown" for state in ("unfinished", "damaged")},
}


def status(args: Arguments) -> int:
    ctx = context(acts=False, cluster=args.cluster)
    folders = [find_folder(ctx, args.cluster)] if args.cluster else ctx.workspace.clusters()
    report: dict[str, Any] = {"clusters": [], "runs": []}
    code = EXIT_OK
    for folder in folders:
        if not folder.json.exists():
            begun = folder.may_exist()
            report["clusters"].append(
                {"cluster": folder.name, "state": "unfinished" if begun else "planned", "nodes": []}
            )
            continue
        try:
            cluster = folder.load()
        except NexaError as error:
            code = EXIT_FAILED
            terminal.error(str(error), error.hint)
            report["clusters"].append({"cluster": folder.name, "state": "damaged", "nodes": []})
            continue
        rows = running.cluster_nodes(ctx, cluster)
        made = usage.known(ctx, folder).bill
        cost = {"usd_per_hour": made.usd_per_hour or cluster.usd_per_hour, "usd": made.cost_usd}
        report["clusters"].append({"cluster": cluster.name, "state": "up", **cost, "nodes": rows})
    for found in ctx.workspace.runs():
        try:
            if found.load().going_on:
                nodes = running.live(ctx, found)
                report["runs"].append({**summary(found), **running.progress_of(nodes), "nodes": nodes})
        except NexaError as error:
            code = EXIT_FAILED
            terminal.error(f"passed over: {error}", error.hint)
    if args.json:
        terminal.emit(report)
        return code
    if not report["clusters"]:
        terminal.say(f"no cluster is known in {ctx.workspace}")
    for entry in report["clusters"]:
        rows = [{"cluster": entry["cluster"], **node} for node in entry["nodes"]] or [
            {"cluster": entry["cluster"], "state": NOT_UP.get(entry["state"], entry["state"])}
        ]
        terminal.table(rows, ("cluster", "node", "address", "ranks", "state"))
        for words in dict.fromkeys(node["machine"] for node in entry["nodes"] if "machine" in node):
            terminal.say(f"{entry['cluster']}: {words}")
        if entry.get("usd") is not None:
            terminal.say(f"{entry['cluster']}: {entry['usd']:.2f} USD so far, {entry['usd_per_hour']:.2f} USD/h")
    for row in report["runs"]:
        row["on nodes"] = ", ".join(f"{name} {answer['state']}" for name, answer in row["nodes"].items())
    if report["runs"]:
        columns = (
            "run",
            "state",
            "attempts",
            "on nodes",
            "step",
            "of",
            "loss",
            "saved",
            "durable",
            "minutes",
            "cost_usd",
        )
        terminal.table(report["runs"], columns)
    for row in report["runs"]:
        if row["straggler"]:
            terminal.say(f"{row['run']}: {row['straggler']['words']}")
    return code
