"""An aws cluster on its way, as the steps of its making share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws.scope import open_scope, ssh_sources
from nexa_dist.plan.aws import scope as planned
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.plan.money.estimate import rates_of
from nexa_dist.run import files
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import end_tagged, tagged
from nexa_dist.run.aws.tagged import TaggedResource
from nexa_dist.run.ssh import keys
from nexa_dist.run.terraform.settings import binary
from nexa_dist.run.terraform.stack import Terraform
from nexa_dist.run.workspace import ClusterFolder

CREATE_LIMIT_S = 900.0
"""Longest that one apply may take; the provider's own limits do not hold without capacity (issue 38133 of it)."""


def settle_s() -> float:
    """Seconds for which a new resource may stay out of the cloud's answers. NEXA_SETTLE_S is for emulated clouds."""
    try:
        return float(os.environ.get("NEXA_SETTLE_S", "60"))
    except ValueError:
        raise NexaError("NEXA_SETTLE_S is no number of seconds") from None


@dataclass(frozen=True)
class Gang:
    """A cluster on its way: who it is for, what Terraform has, what the cloud has."""

    ctx: Context
    folder: ClusterFolder
    config: ClusterConfig
    scope: AwsScope
    terraform: Terraform
    hours: Callable[[float], float]
    """Hours that nodes which cost this many USD an hour may live; raises NexaError when no budget is left."""

    def find(self, *kinds: str) -> list[TaggedResource]:
        """Find all resources of the cluster, or of the named kinds. Without a bucket no profile is made, nor asked
        for."""
        wanted = kinds or (tagged.ALL if self.scope.bucket else tagged.EC2)
        return tagged.find(self.scope.region, self.scope.owner, self.scope.cluster, wanted)

    def variables(self, candidate: Candidate, zones: Iterable[str] = ()) -> dict[str, Any]:
        """Terraform's variables for one candidate. A zone once given a subnet keeps it."""
        before = files.read_json(self.terraform.variables)["zones"] if self.terraform.variables.exists() else []
        sources = ssh_sources(self.config)
        made = planned.tfvars(self.config, self.scope, candidate, {*before, *zones}, str(self.folder.ssh), sources)
        # New nodes live for as long as the money does, also when nobody is there to tell them.
        rates, _ = rates_of(self.config, self.scope.region, candidate, candidate.usd_per_hour)
        return {**made, "max_hours": min(made["max_hours"], round(self.hours(rates.running), 4))}

    def end(self, what: Callable[[TaggedResource], bool], *kinds: str) -> None:
        """Ends everything of the cluster (of these kinds) that `what` picks. Raises NexaError with what did not go."""
        _, errors = end_tagged.sweep(lambda: [t for t in self.find(*kinds) if what(t)], self.ctx.detail, self.ctx.sleep)
        if errors:
            raise NexaError("could not be ended: " + "; ".join(errors), hint="nexa teardown ends the whole cluster")

    def end_all_but(self, kept: set[str]) -> None:
        """Ends every instance of the cluster whose id is not in `kept`."""
        self.end(lambda t: t.id not in kept, "instance")


@dataclass(frozen=True)
class Saved:
    """A plan made earlier in this workspace, to be applied as it is."""

    scope: AwsScope
    candidate: Candidate
    variables: dict[str, Any]
    plan: bytes


def terraform_of(ctx: Context, folder: ClusterFolder, scope: AwsScope) -> Terraform:
    backend = dict(scope.backend)
    if backend and any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
        backend["use_path_style"] = "true"  # what answers there is seldom reached by a name for each bucket
    return Terraform(ctx.runner, binary(ctx.workspace.root), folder.terraform, "aws", backend, aws_client.keys)


def open_gang(
    ctx: Context,
    folder: ClusterFolder,
    config: ClusterConfig,
    hours: Callable[[float], float],
    scope: AwsScope | None = None,
) -> Gang:
    """Asks who and where, and makes the keys on this machine. Makes nothing in the cloud."""
    scope = open_scope(ctx, folder, config, scope)
    keys.ensure_cluster_keys(ctx.runner, folder.ssh, folder.name, config.node_names)
    return Gang(ctx, folder, config, scope, terraform_of(ctx, folder, scope), hours)


def offer_file(folder: ClusterFolder) -> Path:
    """File of the offer that the gang of this folder was made of, or was to be; written before it is tried."""
    return folder.path / "offer.json"


def known_offer(folder: ClusterFolder) -> Candidate:
    try:
        return Candidate(**files.read_json(offer_file(folder)))
    except TypeError as error:
        raise NexaError(
            f"{offer_file(folder)} is damaged: {error}", hint="nexa teardown, then nexa provision"
        ) from None
