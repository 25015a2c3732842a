"""nexa diag: what every node has, how they reach each other, and what is wrong with which of them."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path
from typing import Any

from nexa_dist.config.load import load_cluster
from nexa_dist.errors import EXIT_FAILED, EXIT_OK, UsageError
from nexa_dist.ops.active_runs import active_runs
from nexa_dist.ops.context import Context
from nexa_dist.ops.health import diag as diagnosing
from nexa_dist.ops.health.diag import Report
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, find_cluster

COLUMNS = ("node", "state", "gpus", "driver", "python", "torch", "cuda", "nccl", "memory", "free", "mtu", "skew")


def diag(args: Arguments) -> int:
    ctx = context(cluster=args.cluster, dry=args.dry_run)
    cluster = find_cluster(ctx, args.cluster)
    folder = ctx.workspace.cluster(cluster.name)
    known = folder.json.exists()
    running = active_runs(ctx, cluster.name)
    run = running[0].run_id if running else ""
    deep = diagnosing.wanted_depth(folder, args.deep) if known else args.deep
    if args.dry_run:
        ctx.say(f"would ask each node's agent{', deep' if deep else ''}: {', '.join(n.name for n in cluster.nodes)}")
        ctx.say(f"would not test the group: {run} is using it" if run else f"would test {cluster.world_size} ranks")
        ctx.say(f"would write: {folder.path / 'diag'}" if known else "would write nothing: it is not provisioned here")
        return EXIT_OK
    with ctx.phase(f"diag of {len(cluster.nodes)} nodes{', deep' if deep else ''}"):
        report = diagnosing.examine(ctx, cluster, deep=deep, efa=known and _efa(folder), run=run)
    path, drawn = diagnosing.keep(folder, report) if known else None, report.picture()
    if args.picture and not drawn:
        raise UsageError(f"no picture: {report.why_not or 'the pairs were not measured'}")
    if args.picture:
        files.write_text(Path(args.picture), drawn)
    if args.json:
        terminal.emit(report.to_json())
    else:
        _show(ctx, report, path)
    for finding in report.findings:
        terminal.say(f"{'error' if finding.severity == 'fail' else 'warning'}: {terminal.plain(finding.words)}")
        terminal.say(f"hint: {finding.do}")
    if not report.failures:
        terminal.say(f"✓ {cluster.name}: {len(cluster.nodes)} nodes are fit")
    return EXIT_FAILED if report.failures else EXIT_OK


def _efa(folder: ClusterFolder) -> bool:
    """Tell whether the cluster's file asks for EFA."""
    file = folder.path / "config.json"
    return file.exists() and load_cluster(file).efa


def _show(ctx: Context, report: Report, path: Path | None) -> None:
    bad = {finding.node for finding in report.failures}
    said = {finding.node for finding in report.findings}
    rows = []
    for node in report.cluster.nodes:
        state = "FAIL" if node.name in bad else "warn" if node.name in said else "ok"
        rows.append({"node": node.name, "state": state, **_row(report.facts[node.name])})
    terminal.table(rows, COLUMNS)
    test = report.test or {}
    if "busbw_gb_s" in test:
        ctx.say(
            f"all-reduce over {test['ranks']} ranks ({test['backend']}, {test['bytes'] >> 10} KiB): "
            f"{test['busbw_gb_s']:.3g} GB/s bus bandwidth, {test['latency_us']:.0f} µs latency"
        )
        names = [node.name for node in report.cluster.nodes]
        ctx.say("Gbit/s from each row to each column:")
        cells = [
            {"": name, **dict(zip(names, values, strict=True))}
            for name, values in zip(names, test["matrix"], strict=True)
        ]
        terminal.talk_table(cells, ("", *names))
    elif report.why_not:
        ctx.say(f"no test of the group: {report.why_not}")
    if path:
        ctx.say(f"report: {path}")


def _row(said: Any) -> dict[str, Any]:
    if "error" in said:
        return {}
    environment, gpus = said["environment"], said["gpus"]
    mtus = sorted({route["mtu"] for route in said["peers"].values() if route.get("mtu")})
    return {
        "gpus": f"{len(gpus)} {gpus[0]['name']}" if gpus else "0",
        "driver": gpus[0]["driver"] if gpus else None,
        **{name: environment.get(name) for name in ("python", "torch", "cuda", "nccl")},
        "memory": f"{said['memory']['total'] >> 30} GiB",
        "free": f"{(said['disk']['free_bytes'] or 0) >> 30} GiB",
        "mtu": ",".join(map(str, mtus)) or None,
        "skew": f"{said['skew_s'] * 1000:+.0f} ms",
    }
