"""nexa provision: the nodes made, bootstrapped and proven."""

from __future__ import annotations

import contextlib
import dataclasses
from argparse import Namespace as Arguments
from pathlib import Path

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.work import OwnEnvironment
from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ops.cluster import dry_run
from nexa_dist.ops.cluster import plan as planning
from nexa_dist.ops.cluster import provision as provisioning
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.static import known_hosts as adopting
from nexa_dist.ops.runs.agent_spec import secrets
from nexa_dist.ops.work.environment import make_ready, wished
from nexa_dist.plan.static.known_hosts import Adopted
from nexa_dist.run.ssh.connections import connect, session
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import agreed, answered_yes, consent_to_commands, consent_to_stack
from nexa_dist.verbs._shared import context, load_said
from nexa_dist.verbs.cluster.plan import show, show_changes


def provision(args: Arguments) -> int:
    ctx = context(dry=args.dry_run)
    if bool(args.plan) == bool(args.cluster):
        raise UsageError("nexa provision needs --cluster FILE, or --plan FILE", hint="nexa plan -o makes the latter")
    saved = None
    if args.plan and args.set:
        raise UsageError("--plan is applied as it was saved, so --set could not be heeded", hint="nexa plan --set …")
    if args.plan:
        config, saved = planning.load(ctx, Path(args.plan))
    else:
        config = load_said(Path(args.cluster), args.set)
    train = _read_first(ctx, args.train) if args.train else None
    if args.dry_run:
        return _dry(ctx, config, saved=saved is not None, train=args.train)
    if saved:
        planning.refuse_moved_price(ctx, config, saved)
    seen = None if saved else planning.preview(ctx, config)
    if seen:
        show(seen)
        agreed(args, f"rent {seen.nodes} nodes?", f"{seen.nodes} nodes would be rented")
    consent_to_stack(config)
    consent_to_commands(ctx, config.notify)
    if config.traits.rents and not config.traits.priced and not args.yes:
        _ask_first(ctx, config, args)
    adopted = _host_keys(ctx, config) if not config.traits.makes else []
    made = provisioning.provision(ctx, config, saved, adopted=adopted)
    if train:
        with ctx.phase(f"environment of {args.train}"), session(ctx.runner, made) as ssh:
            make_ready(ctx, connect(ssh), train, secrets(ctx, train))
    price = f"{made.usd_per_hour:.2f} USD/h"
    terminal.say(f"✓ cluster {made.name} is up: {len(made.nodes)} nodes, {made.world_size} ranks, {price}")
    for title, seconds in ctx.times.items():
        terminal.say(f"  {seconds:6.1f} s  {title}")
    terminal.say(f"next: nexa run TRAIN.yaml; give it back with: nexa teardown --cluster {made.name}")
    if args.json:
        keys = {"host_keys": {one.node: one.row for one in adopted}} if adopted else {}
        terminal.emit({**made.to_json(), **keys, "seconds": ctx.times})
    return EXIT_OK


def _read_first(ctx: Context, file: str) -> TrainConfig:
    """The training that the nodes are made ready for: nothing is rented for one that cannot be read."""
    train = load_train(Path(file))
    if isinstance(train.environment, OwnEnvironment):
        wished(ctx, train.environment)
    return train


def _dry(ctx: Context, config: ClusterConfig, *, saved: bool, train: str | None) -> int:
    """Say what would be rented, made and started, from the files here alone."""
    with contextlib.suppress(UsageError):  # what costs nothing has no bill, and of a reservation only the cloud knows
        show(planning.offline(ctx, config))
    for line in dry_run.provision(ctx, config, saved=saved):
        ctx.say(line)
    if train:
        ctx.say(f"would build: the environment of {train}, where it is missing")
    return EXIT_OK


def _ask_first(ctx: Context, config: ClusterConfig, args: Arguments) -> None:
    """The user's word for the plan of a cluster that is not there yet and costs. Raises UsageError."""
    if ctx.workspace.cluster(config.name).json.exists():
        return
    if terminal.interactive():
        show_changes(planning.plan(ctx, config, None))
    agreed(args, f"make {config.nodes} nodes?", f"{config.nodes} nodes would be made, and cost (nexa plan shows what)")


def _host_keys(ctx: Context, config: ClusterConfig) -> list[Adopted]:
    """The keys of the user's own hosts, each vouched for by the file, by known_hosts, or by the user. Raises UsageError
    when nobody does: `-y` is no answer to this."""
    provisioning.refuse_other_provider(ctx.workspace.cluster(config.name), config)
    found = adopting.find(ctx, config)
    strangers = [one for one in found if not one.by]
    if not strangers:
        return found
    terminal.talk_table([one.row for one in found], ("fingerprint", "node", "host", "key", "known by"))
    names = ", ".join(one.node for one in strangers)
    if not answered_yes(f"are these the keys of {names}? Compare them with the hosts' own"):
        raise UsageError(
            f"nobody vouches for the host keys of {names}; nothing was done there",
            hint="give each as host_key: SHA256:… in the cluster's file, once you know it from the host's vendor or "
            "console (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
        )
    return [dataclasses.replace(one, by=one.by or "asked") for one in found]
