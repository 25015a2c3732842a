"""An aws cluster on its way, as the steps of its making share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops import purse
from nexa_dist.ops.context import Context
from nexa_dist.ops.site import open_site, ssh_sources
from nexa_dist.plan import aws as planned
from nexa_dist.plan.aws import Site
from nexa_dist.plan.estimate import rates_of
from nexa_dist.plan.offers import Candidate
from nexa_dist.run import aws, files, keys, leftovers
from nexa_dist.run.leftovers import Thing
from nexa_dist.run.terraform import Terraform, binary
from nexa_dist.run.workspace import ClusterFolder

CREATE_LIMIT_S = 900.0
"""Longest that one apply may take; the provider's own limits do not hold without capacity (issue 38133 of it)."""


def settle_s() -> float:
    """How long a new thing may stay out of the cloud's answers, in seconds. NEXA_SETTLE_S is for emulated clouds."""
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
    site: Site
    terraform: Terraform

    def find(self, *kinds: str) -> list[Thing]:
        """All of the cluster, or of the kinds that are named. Without a bucket no profile is made, nor asked for."""
        wanted = kinds or (leftovers.ALL if self.site.bucket else leftovers.EC2)
        return leftovers.find(self.site.region, self.site.owner, self.site.cluster, wanted)

    def variables(self, candidate: Candidate, zones: Iterable[str] = ()) -> dict[str, Any]:
        """Terraform's variables for one candidate. A zone once given a subnet keeps it."""
        before = files.read_json(self.terraform.variables)["zones"] if self.terraform.variables.exists() else []
        sources = ssh_sources(self.config)
        made = planned.tfvars(self.config, self.site, candidate, {*before, *zones}, str(self.folder.ssh), sources)
        # New nodes live for as long as the money does, also when nobody is there to tell them.
        rates, _ = rates_of(self.config, self.site.region, candidate, candidate.usd_per_hour)
        hours = purse.hours_allowed(self.folder, self.ctx.now(), rates.running, self.config.budget_usd)
        return {**made, "max_hours": min(made["max_hours"], round(hours, 4))}

    def end(self, what: Callable[[Thing], bool], *kinds: str) -> None:
        """Ends everything of the cluster (of these kinds) that `what` picks. Raises NexaError with what did not go."""
        _, errors = leftovers.sweep(lambda: [t for t in self.find(*kinds) if what(t)], self.ctx.detail, self.ctx.sleep)
        if errors:
            raise NexaError("could not be ended: " + "; ".join(errors), hint="nexa teardown ends the whole cluster")

    def end_all_but(self, kept: set[str]) -> None:
        """Ends every instance of the cluster whose id is not in `kept`."""
        self.end(lambda t: t.id not in kept, "instance")


@dataclass(frozen=True)
class Saved:
    """A plan made earlier in this workspace, to be applied as it is."""

    site: Site
    candidate: Candidate
    variables: dict[str, Any]
    plan: bytes


def terraform_of(ctx: Context, folder: ClusterFolder, site: Site) -> Terraform:
    backend = dict(site.backend)
    if backend and any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
        backend["use_path_style"] = "true"  # what answers there is seldom reached by a name for each bucket
    return Terraform(ctx.runner, binary(ctx.workspace.root), folder.terraform, "aws", backend, aws.keys)


def open_gang(ctx: Context, folder: ClusterFolder, config: ClusterConfig, site: Site | None = None) -> Gang:
    """Asks who and where, and makes the keys on this machine. Makes nothing in the cloud."""
    site = open_site(ctx, folder, config, site)
    keys.ensure_cluster_keys(ctx.runner, folder.ssh, folder.name, config.node_names)
    return Gang(ctx, folder, config, site, terraform_of(ctx, folder, site))


def offer_file(folder: ClusterFolder) -> Path:
    """What the gang of this folder was made of, or was to be; written before it is tried."""
    return folder.path / "offer.json"


def known_offer(folder: ClusterFolder) -> Candidate:
    try:
        return Candidate(**files.read_json(offer_file(folder)))
    except TypeError as error:
        raise NexaError(
            f"{offer_file(folder)} is damaged: {error}", hint="nexa teardown, then nexa provision"
        ) from None
