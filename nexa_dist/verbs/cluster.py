"""init, config, provision, status, ssh, teardown."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexa_dist import ui
from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.load import json_schema, kind_of, load_cluster, load_train, resolved
from nexa_dist.errors import EXIT_FAILED, EXIT_OK, NexaError, StillRunning, UsageError
from nexa_dist.ops import adopt as adopting
from nexa_dist.ops import aws_end as ending
from nexa_dist.ops import bucket as deleting
from nexa_dist.ops import meter, static_end
from nexa_dist.ops import plan as planning
from nexa_dist.ops import provision as provisioning
from nexa_dist.ops import runs as running
from nexa_dist.ops import teardown as destroying
from nexa_dist.ops.context import Context
from nexa_dist.ops.init import init as initialise
from nexa_dist.ops.ownrecord import Record
from nexa_dist.plan.adopt import Adopted
from nexa_dist.run import trust
from nexa_dist.run.nodes import Ssh
from nexa_dist.run.workspace import Workspace
from nexa_dist.verbs.cloud import show
from nexa_dist.verbs.common import context, find_cluster, find_folder, is_file, load_said

Arguments = argparse.Namespace


def init(args: Arguments) -> int:
    folder = Path(args.folder)
    for path in initialise(folder):
        ui.say(f"made {path}")
    if not Workspace.of(folder.absolute()).above:  # from below it is found from now on
        trust.claim(folder)
    ui.say("next: nexa provision --cluster cluster.yaml, then nexa run train.yaml, then nexa teardown")
    return EXIT_OK


def config(args: Arguments) -> int:
    if args.schema:
        ui.emit(json_schema(args.schema))
        return EXIT_OK
    if not args.file:
        raise UsageError("nexa config needs a FILE, or --schema")
    path = Path(args.file)
    load: Callable[..., Any] = load_cluster if kind_of(path) == "cluster" else load_train
    found = resolved(load(path, args.set))
    if args.json:
        ui.emit(found)
    else:
        import yaml

        ui.out(yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip())
    return EXIT_OK


def provision(args: Arguments) -> int:
    ctx = context()
    if bool(args.plan) == bool(args.cluster):
        raise UsageError("nexa provision needs --cluster FILE, or --plan FILE", hint="nexa plan -o makes the latter")
    saved = None
    if args.plan and args.set:
        raise UsageError("--plan is applied as it was saved, so --set could not be heeded", hint="nexa plan --set …")
    if args.plan:
        config, saved = planning.load(ctx, Path(args.plan))
    else:
        config = load_said(Path(args.cluster), args.set)
    if args.dry_run and config.provider == "static":
        ui.say(f"would adopt the host keys of {len(config.cluster)} hosts, and add to them what training needs")
        ui.say("would run: playbooks/bootstrap.yml, a health check of every host")
        return EXIT_OK
    if args.dry_run:
        ui.say(
            f"would make cluster {config.name}: {config.nodes} nodes, {config.gpus_per_node} ranks each, "
            f"provider {config.provider}"
        )
        ui.say("would run: terraform init, terraform apply, playbooks/bootstrap.yml, a health check of every node")
        return EXIT_OK
    if saved:
        planning.refuse_moved_price(ctx, config, saved)
    seen = None if saved else planning.preview(ctx, config)
    if seen:
        show(seen)
        if not args.yes and not (ui.interactive() and ui.confirm(f"rent {seen.nodes} nodes?")):
            raise UsageError(f"{seen.nodes} nodes would be rented", hint="-y says yes")
    adopted = _host_keys(ctx, config) if config.provider == "static" else []
    made = provisioning.provision(ctx, config, saved, adopted=adopted)
    price = f"{made.usd_per_hour:.2f} USD/h"
    ui.say(f"✓ cluster {made.name} is up: {len(made.nodes)} nodes, {made.world_size} ranks, {price}")
    for title, seconds in ctx.times.items():
        ui.say(f"  {seconds:6.1f} s  {title}")
    ui.say(f"next: nexa run TRAIN.yaml; give it back with: nexa teardown --cluster {made.name}")
    if args.json:
        keys = {"host_keys": {one.node: one.row for one in adopted}} if adopted else {}
        ui.emit({**made.to_json(), **keys, "seconds": ctx.times})
    return EXIT_OK


def _host_keys(ctx: Context, config: ClusterConfig) -> list[Adopted]:
    """The keys of the user's own hosts, each vouched for by the file, by known_hosts, or by the user. Raises UsageError
    when nobody does: `-y` is no answer to this."""
    provisioning.refuse_other_provider(ctx.workspace.cluster(config.name), config)
    found = adopting.find(ctx, config)
    strangers = [one for one in found if not one.by]
    if not strangers:
        return found
    ui.talk_table([one.row for one in found], ("fingerprint", "node", "host", "key", "known by"))
    names = ", ".join(one.node for one in strangers)
    if not (ui.interactive() and ui.confirm(f"are these the keys of {names}? Compare them with the hosts' own")):
        raise UsageError(
            f"nobody vouches for the host keys of {names}; nothing was done there",
            hint="give each as host_key: SHA256:… in the cluster's file, once you know it from the host's vendor or "
            "console (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
        )
    return [dataclasses.replace(one, by=one.by or "asked") for one in found]


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
            begun = destroying.may_exist(folder)
            report["clusters"].append(
                {"cluster": folder.name, "state": "unfinished" if begun else "planned", "nodes": []}
            )
            continue
        try:
            cluster = folder.load()
        except NexaError as error:
            code = EXIT_FAILED
            ui.error(str(error), error.hint)
            report["clusters"].append({"cluster": folder.name, "state": "damaged", "nodes": []})
            continue
        rows = running.cluster_nodes(ctx, cluster)
        made = meter.known(ctx, folder).bill
        cost = {"usd_per_hour": made.usd_per_hour or cluster.usd_per_hour, "usd": made.cost_usd}
        report["clusters"].append({"cluster": cluster.name, "state": "up", **cost, "nodes": rows})
    for found in ctx.workspace.runs():
        try:
            if running.active(found) or running.pending(found.load()):
                nodes = running.live(ctx, found)
                report["runs"].append({**running.summary(found), **running.progress_of(nodes), "nodes": nodes})
        except NexaError as error:
            code = EXIT_FAILED
            ui.error(f"passed over: {error}", error.hint)
    if args.json:
        ui.emit(report)
        return code
    if not report["clusters"]:
        ui.say(f"no cluster is known in {ctx.workspace}")
    for entry in report["clusters"]:
        rows = [{"cluster": entry["cluster"], **node} for node in entry["nodes"]] or [
            {"cluster": entry["cluster"], "state": NOT_UP.get(entry["state"], entry["state"])}
        ]
        ui.table(rows, ("cluster", "node", "address", "ranks", "state"))
        if entry.get("usd") is not None:
            ui.say(f"{entry['cluster']}: {entry['usd']:.2f} USD so far, {entry['usd_per_hour']:.2f} USD/h")
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
        ui.table(report["runs"], columns)
    return code


def ssh(args: Arguments) -> int:
    ctx = context(cluster=args.cluster)
    cluster = find_cluster(ctx, args.cluster)
    node = provisioning.node_of(cluster, args.node)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    argv = Ssh(ctx.runner, cluster, "/nonexistent").argv(
        node,
        "-oControlMaster=no",
        "-oControlPath=none",
        "-oBatchMode=no",
        *(["-t"] if not command and sys.stdin.isatty() else []),
    )
    # One word goes to the node's shell as it is, as with ssh: 'ls | wc -l'.
    said = command if len(command) == 1 else [shlex.join(command)] if command else []
    os.execvp(argv[0], [*argv, *said])


def teardown(args: Arguments) -> int:
    ctx = context(acts=not args.dry_run, cluster=args.cluster)
    if not args.cluster and not ctx.workspace.clusters():
        ui.say(f"nothing to tear down in {ctx.workspace}")
        return EXIT_OK
    folder, config = find_folder(ctx, args.cluster), None
    if args.cluster and is_file(args.cluster):
        config = load_cluster(Path(args.cluster))
        if destroying.may_exist(folder):
            provisioning.refuse_other_provider(folder, config)
    own = Record.exists(folder)
    try:
        site = ending.site_of(ctx, folder, config)
        elsewhere = ending.holder_elsewhere(ctx, site) if site else ""
    except UsageError:
        raise
    except NexaError as error:
        raise StillRunning(f"what is left of {folder.name} cannot be told: {error}", hint=error.hint) from error
    if not site and not destroying.may_exist(folder):
        destroying.forget(folder)
        ui.say(f"cluster {folder.name} was never made: nothing to tear down")
        return EXIT_OK
    active = running.active_runs(ctx, folder.name)
    doomed = f"cluster {folder.name}"
    doomed += f", held by {elsewhere}," if elsewhere else ""
    doomed += f" and the active runs {', '.join(r.run_id for r in active)}" if active else ""
    if args.dry_run:
        ui.say(f"would destroy {doomed}")
        return EXIT_OK
    if (active or elsewhere) and not args.yes and not (ui.interactive() and ui.confirm(f"destroy {doomed}?")):
        raise UsageError(f"{doomed} would be ended", hint="-y says yes")
    if args.without:
        static_end.give_up(folder, args.without)
    receipt = destroying.teardown(ctx, folder, site)
    for row in receipt["nodes"]:
        where = f"{row['id']} {row['offer']}: {row['state']}" if site else f"{row['address']}:{row['port']}"
        ui.say(f"  {'given back' if own else 'gone'}: {row['name']} {where}")
    cost = "cost unknown here" if receipt["cost_usd"] is None else f"{receipt['cost_usd']:.2f} USD"
    proof = (
        f"{len(receipt['resources'])} resources confirmed gone"
        if site
        else f"{sum(map(len, receipt['removed'].values()))} things removed, 0 processes left"
        if own
        else "0 resources, 0 processes, 0 listening ports left"
    )
    ui.say(f"✓ cluster {folder.name} is gone: {proof}; {cost}")
    if site and args.delete_bucket and site.bucket:
        deleting.delete(ctx, site.bucket)
        ui.say(f"  bucket {site.bucket} is gone with all that was in it")
    else:
        for kept in receipt.get("kept", ()):
            ui.say(f"  kept: {kept}")
    ui.say(f"  receipt {ctx.workspace.near(ctx.workspace.root / receipt['receipt'])}")
    for line in receipt["waste"]["lines"] if receipt["cost_usd"] else ():
        ui.say(f"  {line}")
    if args.json:
        ui.emit(receipt)
    return EXIT_OK
