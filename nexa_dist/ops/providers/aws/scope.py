"""Scope of an aws cluster (account, region, owner): asked once, written down before anything is made."""

from __future__ import annotations

import os
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.fields import check_cidr, check_owner, region_of
from nexa_dist.errors import UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.light import env_hash
from nexa_dist.ops.providers.aws.given import changed, given
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.aws.scope import DEFAULT_IMAGE, AwsScope, place_of
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import images as aws_images
from nexa_dist.run.workspace import ClusterFolder

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""Pythons of machine images; what an image is made with is part of its environment's name."""


def region_wanted(config: ClusterConfig) -> str:
    """The file's region, that of its zones, or the environment's. Raises UsageError when there is none."""
    zones = [o.zone for o in config.offers if not isinstance(o, str) and o.zone]
    found = config.region or (region_of(zones[0]) if zones else "") or aws_client.default_region()
    if not found:
        raise UsageError("no AWS region is given", hint="set region in the cluster's file, or AWS_REGION")
    return found


def owner_wanted(config: ClusterConfig | None, who: aws_client.Identity) -> str:
    """The file's owner, NEXA_OWNER, or the AWS identity."""
    named = (config.owner if config else None) or os.environ.get("NEXA_OWNER")
    try:
        return check_owner(named or who.who)
    except ValueError as error:
        raise UsageError(f"owner {named or who.who!r}: {error}", hint="set owner in the cluster's file") from None


def ssh_sources(config: ClusterConfig) -> tuple[str, ...]:
    """Networks that may reach sshd. Raises UsageError when none is named: the world is no default."""
    if config.ssh_from:
        return config.ssh_from
    named = [part.strip() for part in os.environ.get("NEXA_SSH_FROM", "").split(",") if part.strip()]
    if not named:
        raise UsageError(
            "nobody may reach the nodes: neither ssh_from nor NEXA_SSH_FROM is set",
            hint='export NEXA_SSH_FROM="$(curl -s https://checkip.amazonaws.com)/32" names this machine',
        )
    try:
        return tuple(check_cidr(part) for part in named)
    except ValueError as error:
        raise UsageError(f"NEXA_SSH_FROM: {error}") from None


def open_scope(ctx: Context, folder: ClusterFolder, config: ClusterConfig, planned: AwsScope | None = None) -> AwsScope:
    """The known scope, the planned one, or a new one; checked against the file and the account. Makes nothing."""
    ssh_sources(config)
    known = known_scope(folder) or planned
    region = region_wanted(config)
    who = aws_client.identity(region)
    if known is None:
        now, owner, own = ctx.now(), owner_wanted(config, who), given(ctx, config, region)
        end = int(now + (config.max_hours or 0) * 3600)
        return AwsScope(
            cluster=folder.name,
            region=region,
            account=who.account,
            owner=owner,
            workspace=our_tag(ctx),
            created_unix=now,
            expires_unix=min(end, own.ends_unix or end),
            image=_image(ctx, config, region, owner),
            bucket=config.bucket or "",
            state=config.state or "",
            prefix=place_of(owner, folder.name),
            labels=dict(config.tags),
            given=own,
        )
    _refuse_change(known, config, region, who)
    if known.expires_unix <= ctx.now():
        raise UsageError(
            f"cluster {known.cluster} expired at {known.expires}: its nodes have switched themselves off",
            hint="nexa teardown, then nexa provision",
        )
    return known


def _image(ctx: Context, config: ClusterConfig, region: str, owner: str) -> str:
    """The file's image; else the newest of our own that has the environment of today and fits the disk; else AWS's."""
    if not config.ami:
        current = {env_hash(python) for python in PYTHONS}
        for image in aws_images.found(region, owner):
            if image.state == "available" and image.env in current and image.gb <= config.volume_gb:
                days = (ctx.now() - image.made_unix) / 86_400
                ctx.detail(f"image {image.id}, baked {days:.1f} days ago (`ami` in the file names another)")
                return image.id
    return aws_client.Cloud(region).image(config.ami or DEFAULT_IMAGE)


def _refuse_change(known: AwsScope, config: ClusterConfig, region: str, who: aws_client.Identity) -> None:
    """Refuse what cannot change under a living cluster, and an account that is not the one it was made in."""
    check_account(known, who)
    if key := changed(known.given, config):
        raise UsageError(
            f"cluster {known.cluster} was made in other {key} than the file names",
            hint="nexa teardown first, or put the old value back",
        )
    wanted: dict[str, Any] = {"region": region, "bucket": config.bucket or "", "state": config.state or ""}
    wanted["labels"] = dict(config.tags)
    if config.owner:
        wanted["owner"] = config.owner
    if config.ami and config.ami.startswith("ami-"):
        wanted["image"] = config.ami
    for key, value in wanted.items():
        if getattr(known, key) != value:
            named = {"labels": "tags"}.get(key, key)
            raise UsageError(
                f"cluster {known.cluster} was made with {named} {getattr(known, key)!r}, and the file says {value!r}",
                hint="nexa teardown first, or put the old value back",
            )


def check_account(known: AwsScope, who: aws_client.Identity) -> None:
    """Raises UsageError when the credentials are of another account than the cluster's."""
    if known.account != who.account:
        raise UsageError(
            f"cluster {known.cluster} is in account {known.account}, and the credentials are of {who.account}",
            hint="choose the right AWS_PROFILE",
        )
