"""nexa env list, prune: the environments on the nodes."""

from __future__ import annotations

import time
from argparse import Namespace as Arguments
from typing import Any

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.work import environment
from nexa_dist.run.ssh.connections import Link, connect, on_all, session
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import borrowed, context, find_cluster

COLUMNS = ("node", "environment", "what", "torch", "gib", "used_hours", "state")


def env(args: Arguments) -> int:
    ctx = context(cluster=args.cluster, dry=args.dry_run)
    cluster = find_cluster(borrowed(ctx, args.cluster), args.cluster)
    if args.action == "list" and args.dry_run:
        raise UsageError("--dry-run belongs to nexa env prune", hint="nexa env list changes nothing")

    def ask(link: Link) -> dict[str, Any]:
        return environment.listed(link) if args.action == "list" else environment.pruned(link, dry=args.dry_run)

    with session(ctx.runner, cluster) as ssh:
        same = cluster.traits.one_machine and not cluster.layout.shared.startswith("~")
        links = connect(ssh)[: 1 if same else None]
        # Where nodes share a disk, the first one has removed what the others would.
        answers = on_all(links, ask) if args.action == "list" else [ask(link) for link in links]
    key = "rows" if args.action == "list" else "removed"
    rows = [_row(cluster, link, row) for link, said in zip(links, answers, strict=True) for row in said[key]]
    if args.json:
        terminal.emit(rows)
        return EXIT_OK
    terminal.table(rows, COLUMNS)
    free = ", ".join(
        f"{link.node.name} {said['free_bytes'] / 2**30:.1f} GiB" for link, said in zip(links, answers, strict=True)
    )
    done = {"list": "", "prune": f"{len(rows)} {'would be ' * args.dry_run}removed; "}[args.action]
    terminal.say(f"{done}free: {free}")
    return EXIT_OK


def _row(cluster: Cluster, link: Link, row: dict[str, Any]) -> dict[str, Any]:
    made, state = row["made"], "in use" if row["busy"] else ""
    if row["name"] == cluster.env_hash:
        state = "the cluster's"
    elif made is None:
        state = "unfinished"
    return {
        "node": link.node.name,
        "environment": row["name"],
        "what": (made or {}).get("what", "" if made is None else "light"),
        "torch": (made or {}).get("torch", ""),
        "gib": round(row["bytes"] / 2**30, 2),
        "used_hours": round((time.time() - row["used_unix"]) / 3600, 1),
        "state": state,
    }
