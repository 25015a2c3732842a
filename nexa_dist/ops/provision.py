"""nexa provision: Terraform makes the nodes, Ansible bootstraps them, and each one proves itself."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.paths import safe_path
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops import aws, guard, local, meter, purse
from nexa_dist.ops.bootstrap import bootstrap, prove
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws import NODE_PYTHON
from nexa_dist.run import bundle, files
from nexa_dist.run.nodes import session
from nexa_dist.run.workspace import ClusterFolder

PASSED_ON = ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_CACHE_DIR")
"""Settings of the user's environment that become Ansible variables."""


def provision(ctx: Context, config: ClusterConfig, saved: aws.Saved | None = None, lost: Sequence[str] = ()) -> Cluster:
    """Makes the cluster, or brings it back to what the file says. Safe to run again, at any time.

    With `saved` Terraform applies exactly that plan. The nodes in `lost` are ended and made anew; the others stay
    as they are.
    """
    if config.provider == "static":
        raise UsageError(
            "provider static has nothing to provision: its hosts are yours",
            hint="nexa run works on your own hosts as they are; provider: local makes a cluster on this machine",
        )
    _refuse_what_is_expanded(ctx)
    folder = ctx.workspace.cluster(config.name)
    with folder.locked("provision"):
        purse.open_budget(folder, config.budget_usd, ctx.now())
        ahead_s = 0.0
        if config.provider == "local":
            files.write_json(folder.path / "config.json", config.model_dump(mode="json", exclude_unset=True))
            meter.begin_own(ctx, folder, config, lost)
            meter.advance(ctx, folder, "booting")
            made, homes = local.make(ctx, folder, config, lost)
            own = local.variables()
        else:
            try:
                made, homes = aws.make(ctx, folder, config, saved, lost)
            finally:
                ahead_s = _metered(ctx, folder)
            own = {"nexa_python": NODE_PYTHON, "ansible_python_interpreter": "/usr/bin/python3"}
        meter.advance(ctx, folder, "bootstrapping", ahead_s)
        with _in_use(ctx, config, made):
            bootstrap(ctx, folder, made, homes, own, _made_anew(folder, made) if lost else ())
            with ctx.phase("health"), folder.journalled("check"):
                for line in prove(ctx, made):
                    ctx.detail(line)
        meter.advance(ctx, folder, "idle", ahead_s)
        files.write_json(folder.json, made.to_json())
    return made


@contextlib.contextmanager
def _in_use(ctx: Context, config: ClusterConfig, made: Cluster) -> Iterator[None]:
    """Nodes that are set up are neither idle nor without a controller."""
    if not config.lease_minutes and not config.idle_minutes:
        yield
        return
    with session(ctx.runner, made) as ssh, guard.in_use(guard.doors(ssh)):
        yield


def _metered(ctx: Context, folder: ClusterFolder) -> float:
    """Writes down what the cloud says of all that was tried, also of what failed and was given back. Answers how far
    the cloud's clock is ahead of ours, in seconds."""
    try:
        ahead_s = meter.refresh(ctx, folder).ahead_s
        meter.advance(ctx, folder, "booting")
        return ahead_s
    except NexaError as error:  # the next one who asks makes up for it
        ctx.detail(f"the ledger is behind: {error}")
        return 0.0


def _made_anew(folder: ClusterFolder, made: Cluster) -> list[str]:
    """Nodes on other machines than cluster.json names; none for a provider whose machines have no id."""
    before = {node.name: node.instance_id for node in folder.load().nodes}
    return [node.name for node in made.nodes if node.instance_id != before.get(node.name)]


def _refuse_what_is_expanded(ctx: Context) -> None:
    """Raises UsageError, before anything is made, for a path or a setting of ours that Ansible would run as code."""
    for path in (ctx.workspace.root, Path(local.shared_folder()), bundle.root(), Path(sys.executable)):
        safe_path(path)
    for name in PASSED_ON:
        if any(mark in os.environ.get(name, "") for mark in ("{{", "{%", "{#")):
            raise UsageError(f"{name} contains a template that Ansible would run", hint=f"give {name} a plain value")


def node_of(cluster: Cluster, name: str) -> Node:
    """The node called `name`. Raises UsageError with the names there are."""
    for node in cluster.nodes:
        if node.name == name:
            return node
    raise UsageError(
        f"cluster {cluster.name} has no node {name!r}", hint=f"nodes: {', '.join(n.name for n in cluster.nodes)}"
    )
