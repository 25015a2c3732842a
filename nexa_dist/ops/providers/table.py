"""Table of the providers' modules: one is imported when it is asked for, since a launch needs none of them."""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import TYPE_CHECKING, cast

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.plan.health.lost import CloudWord
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.traits import TRAITS

if TYPE_CHECKING:
    from nexa_dist.ops.providers import local, stack
    from nexa_dist.ops.providers.aws import provider as aws
    from nexa_dist.ops.providers.contract import Provider
    from nexa_dist.ops.providers.slurm import provider as slurm
    from nexa_dist.ops.providers.static import provider as static

    _ARE_PROVIDERS: tuple[Provider, ...] = (aws, local, slurm, static, stack)  # what mypy holds them to

MODULES = {
    "aws": "nexa_dist.ops.providers.aws.provider",
    "local": "nexa_dist.ops.providers.local",
    "static": "nexa_dist.ops.providers.static.provider",
    "stack": "nexa_dist.ops.providers.stack",
    "slurm": "nexa_dist.ops.providers.slurm.provider",
}


LIGHT = {"local": "nexa_dist.ops.providers.local_nodes"}
"""Modules that have `usage` apart from what makes nodes: a verb that shows a bill waits for neither Terraform nor
Ansible."""

RECORDS = {"site.json": "aws", "own.json": "static", "stack.json": "stack", "slurm.json": "slurm"}
"""Records that a provider writes for itself into a cluster's folder."""


def of_folder(folder: ClusterFolder, unknown: str = "local") -> str:
    """Provider of a cluster's folder: by a record of the provider's own, else by the file that they were made of, which
    may be torn."""
    for record, name in RECORDS.items():
        if (folder.path / record).exists():
            return name
    for path in (folder.path / "config.json", folder.json):
        with contextlib.suppress(NexaError):
            told = files.read_object(path).get("provider") if path.exists() else None
            if isinstance(told, str) and told in TRAITS:
                return told
    return unknown


def provider_of(name: str) -> Provider:
    """The provider of this name."""
    return cast("Provider", import_module(MODULES[name]))


def usage(name: str, ctx: Context, folder: ClusterFolder) -> float:
    """`Provider.usage` of the provider of this name."""
    told: float = import_module(LIGHT.get(name, MODULES[name])).usage(ctx, folder)
    return told


def machine_says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """State of a node's machine by the word of its maker (`Provider.says`)."""
    return provider_of(cluster.provider).says(ctx, cluster, node)


def is_off(ctx: Context, cluster: Cluster, node: Node) -> bool:
    """Tell whether the cloud says that the machine is off: nothing of a run is left on it then."""
    try:
        asked = cluster.traits.priced or cluster.traits.scheduled
        return asked and machine_says(ctx, cluster, node)[0] in ("off", "forgotten")
    except NexaError:
        return False
