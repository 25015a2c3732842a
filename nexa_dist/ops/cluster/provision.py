"""nexa provision: nodes from Terraform, or the user's own; Ansible bootstraps them, and each one proves itself."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.paths import safe_path
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.bootstrap import bootstrap
from nexa_dist.ops.cluster import mesh
from nexa_dist.ops.context import Context
from nexa_dist.ops.health import acceptance
from nexa_dist.ops.money import budget, lease
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.providers import local
from nexa_dist.ops.providers.aws.gang import Saved
from nexa_dist.ops.providers.contract import Wish
from nexa_dist.ops.providers.static import make as static_make
from nexa_dist.ops.providers.static.record import Record
from nexa_dist.ops.providers.table import of_folder, provider_of
from nexa_dist.plan.static.known_hosts import Adopted
from nexa_dist.run import bundle, files
from nexa_dist.run.ssh.connections import session
from nexa_dist.run.workspace import ClusterFolder

PASSED_ON = ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_CACHE_DIR")
"""Settings of the user's environment that become Ansible variables."""


def provision(
    ctx: Context,
    config: ClusterConfig,
    saved: Saved | None = None,
    lost: Sequence[str] = (),
    adopted: Sequence[Adopted] = (),
) -> Cluster:
    """Makes the cluster, or brings it back to what the file says. Safe to run again, at any time.

    With `saved` Terraform applies exactly that plan. The nodes in `lost` are ended and made anew; the others stay
    as they are. `adopted` are the host keys of the user's own hosts, in node order.
    """
    refuse_what_is_expanded(ctx)
    folder = ctx.workspace.cluster(config.name)
    refuse_other_provider(folder, config)
    if not config.traits.makes:
        with folder.locked("provision"):
            return _own_hosts(ctx, folder, config, adopted)
    with folder.locked("provision"):
        budget.open_budget(folder, config.budget_usd, ctx.now())
        before = folder.load() if folder.json.exists() else None
        made, ahead_s = _made(ctx, folder, config, saved, lost, before)
        fresh = {*lost, *_made_anew(before, made)}
        made, report = acceptance.proven(
            ctx, folder, config, made, fresh,
            again=lambda bad: _made(ctx, folder, config, None, bad, made)[0],
            during=lambda nodes: _in_use(ctx, config, nodes),
        )  # fmt: skip
        usage.advance(ctx, folder, "idle", ahead_s)
        files.write_json(folder.json, made.to_json())
        acceptance.refuse(report)
    return made


def _made(
    ctx: Context,
    folder: ClusterFolder,
    config: ClusterConfig,
    saved: Saved | None,
    lost: Sequence[str],
    before: Cluster | None,
) -> tuple[Cluster, float]:
    """The nodes, bootstrapped: all of them, or with `lost` those that are others than `before`. And how far the
    cloud's clock is ahead of ours, in seconds."""
    ahead_s = 0.0

    def begin() -> None:
        files.write_json(folder.path / "config.json", config.model_dump(mode="json", exclude_unset=True))
        if not config.traits.priced:  # else the cloud tells afterwards when the meter started
            usage.begin_own(ctx, folder, config, lost)
            usage.advance(ctx, folder, "booting")

    try:
        wish = Wish(budget.allowance(ctx, folder, config), begin, lost, saved)
        nodes = provider_of(config.provider).make(ctx, folder, config, wish)
    finally:
        if config.traits.priced:
            ahead_s = _metered(ctx, folder)
    made = nodes.cluster
    if not config.traits.priced:
        usage.priced(folder, made)
    usage.advance(ctx, folder, "bootstrapping", ahead_s)
    if config.traits.scheduled:  # whose nodes are set up by others
        return made, ahead_s
    only = _made_anew(before, made) if lost else ()
    with _in_use(ctx, config, made), mesh.joining(ctx, folder, config, made, only) as meshed:
        bootstrap(
            ctx, folder, made, nodes.homes, {**nodes.variables, **meshed, **_containers(config)}, only, nodes.each
        )
        return mesh.joined(ctx, folder, config, made), ahead_s


def _own_hosts(ctx: Context, folder: ClusterFolder, config: ClusterConfig, adopted: Sequence[Adopted]) -> Cluster:
    """The user's own hosts. Nothing is made, so the meter starts when they are ours to use."""
    hosts = static_make.make(ctx, folder, config, Wish(adopted=adopted))
    files.write_json(folder.path / "config.json", config.model_dump(mode="json", exclude_unset=True))
    budget.open_budget(folder, config.budget_usd, ctx.now())
    usage.begin_own(ctx, folder, config, ())
    usage.advance(ctx, folder, "bootstrapping")
    made = mesh.with_mesh(config, hosts.cluster)
    with static_make.tidied(ctx, folder, hosts), mesh.joining(ctx, folder, config, made) as meshed:
        own = {**hosts.variables, **meshed, **_containers(config)}
        bootstrap(ctx, folder, made, hosts.homes, own, each=hosts.each)
        made = mesh.joined(ctx, folder, config, made)
    report = acceptance.check(ctx, folder, config, made)
    usage.advance(ctx, folder, "idle")
    files.write_json(folder.json, made.to_json())
    acceptance.refuse(report)
    return made


def _containers(config: ClusterConfig) -> dict[str, Any]:
    return {"nexa_containers": True, "nexa_images": list(config.images)} if config.containers else {}


def refuse_other_provider(folder: ClusterFolder, config: ClusterConfig) -> None:
    """Raises UsageError when a cluster of this name is there, and of another provider: one of them would be lost."""
    begun = folder.json.exists() or (folder.path / "config.json").exists() or Record.exists(folder)
    there = of_folder(folder, unknown="" if config.traits.makes else "unknown") if begun else ""
    if there not in ("", config.provider):
        words = "your own hosts" if there == "static" else "another provider's nodes"
        raise UsageError(
            f"cluster {folder.name} is there already, and it is of {words}",
            hint="give this one another name, or nexa teardown that one first",
        )


@contextlib.contextmanager
def _in_use(ctx: Context, config: ClusterConfig, made: Cluster) -> Iterator[None]:
    """Renews lease and busy marks while the block runs, so that a long bootstrap trips neither idle_minutes nor
    lease_minutes."""
    if not config.lease_minutes and not config.idle_minutes:
        yield
        return
    with session(ctx.runner, made) as ssh, lease.in_use(lease.doors(ssh)):
        yield


def _metered(ctx: Context, folder: ClusterFolder) -> float:
    """Writes down what the cloud says of all that was tried, also of what failed and was given back. Answers how far
    the cloud's clock is ahead of ours, in seconds."""
    try:
        ahead_s = usage.refresh(ctx, folder).ahead_s
        usage.advance(ctx, folder, "booting")
        return ahead_s
    except NexaError as error:  # the next one who asks makes up for it
        ctx.detail(f"the ledger is behind: {error}")
        return 0.0


def _made_anew(before: Cluster | None, made: Cluster) -> list[str]:
    """Nodes on other machines than before; of a provider whose machines have no id only those that were not there."""
    known = {node.name: node.instance_id for node in before.nodes} if before else {}
    return [node.name for node in made.nodes if known.get(node.name) != node.instance_id]


def refuse_what_is_expanded(ctx: Context) -> None:
    """Raises UsageError, before anything is made, for a path or a setting of ours that Ansible would run as code."""
    for path in (ctx.workspace.root, Path(local.shared_folder()), bundle.root(), Path(sys.executable)):
        safe_path(path)
    for name in PASSED_ON:
        if any(mark in os.environ.get(name, "") for mark in ("{{", "{%", "{#")):
            raise UsageError(f"{name} contains a template that Ansible would run", hint=f"give {name} a plain value")


def node_of(cluster: Cluster, name: str) -> Node:
    """The node called `name`, or the only one. Raises UsageError with the names there are."""
    for node in cluster.nodes:
        if node.name == name or (not name and len(cluster.nodes) == 1):
            return node
    raise UsageError(
        f"cluster {cluster.name} has no node {name!r}" if name else f"which node of cluster {cluster.name}?",
        hint=f"nodes: {', '.join(n.name for n in cluster.nodes)}",
    )
