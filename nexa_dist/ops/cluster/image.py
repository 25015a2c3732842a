"""nexa image: a node that is set up, kept as a machine image, so that later nodes have little left to do.

An image is made of a cluster of its own, of one node, that nothing ever trained on: it holds nobody's data, and nothing
of the node that it was but what the next boot replaces.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, StillRunning, UsageError
from nexa_dist.model import Cluster, absolute
from nexa_dist.ops.cluster import provision as provisioning
from nexa_dist.ops.cluster import teardown as destroying
from nexa_dist.ops.cluster.teardown import Stop
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws.scope import owner_wanted, region_wanted
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.plan import told
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import images as aws_images
from nexa_dist.run.aws.images import Image
from nexa_dist.run.aws.tagged import OWNER
from nexa_dist.run.ssh.connections import session

LIMIT_S, PAUSE_S = 3600.0, 15.0
MAX_HOURS = 2.0

CLEAN = """\
set -eu
cloud-init clean --logs
find "$2" "$3" -mindepth 1 -delete
rm -f /root/.ssh/authorized_keys /root/.bash_history /etc/ssh/ssh_host_* "$1/.bash_history" "$1/.ssh/authorized_keys"
: >/etc/machine-id
sync
"""
"""$1 home, $2 scratch, $3 durable: what names this node, lets somebody in, or is a run's. The deadline stays armed; the
next machine has another id, and starts its own (terraform/shared/deadline.sh)."""


def wanted(config: ClusterConfig) -> ClusterConfig:
    """The cluster of which the image is made: one node as the file says, and nothing that outlives it."""
    if config.provider != "aws":
        raise UsageError(
            f"provider {config.provider} has no images", hint="nodes of this machine share $NEXA_SHARED anyway"
        )
    made = config.model_dump(mode="json", exclude_unset=True)
    for key in ("bucket", "state", "mesh", "budget_usd", "lease_minutes", "idle_minutes"):
        made.pop(key, None)
    hours = min(config.max_hours or MAX_HOURS, MAX_HOURS)
    made |= {"name": f"{config.name[:27]}-bake", "nodes": 1, "max_hours": hours}
    return ClusterConfig.model_validate(made)


def bake(ctx: Context, config: ClusterConfig, stop: Stop) -> dict[str, Any]:
    """Provisions one node, makes an image of it, and gives it back. Answers the image and teardown's receipt.

    What was begun when it is killed is a cluster like any other, with its deadline: doing it again goes on from there.
    """
    one = wanted(config)
    folder = ctx.workspace.cluster(one.name)
    made = provisioning.provision(ctx, one)
    scope = known_scope(folder)
    assert scope is not None  # provision wrote it
    with folder.locked("image bake"), ctx.phase("image"), folder.journalled("image"):
        clean(ctx, made)
        ours = {
            OWNER: scope.owner,
            aws_images.ENV: made.env_hash,
            aws_images.BASE: scope.image,
            "Name": f"nexa-{one.name}",
        }
        ident = aws_images.make(
            scope.region, made.nodes[0].instance_id, f"nexa-{one.name}-{int(time.time())}", scope.labels | ours
        )
        ctx.detail(f"{ident} is being made")
        whole = _whole(ctx, scope.region, scope.owner, ident)
    receipt = destroying.teardown(ctx, folder, scope, stop)
    return {"image": asdict(whole), "receipt": receipt}


def clean(ctx: Context, made: Cluster) -> None:
    """Cleans a node of all keys; nobody can log in to it after this."""
    node = made.nodes[0]
    with session(ctx.runner, made) as ssh:
        said = ssh.run(node, ("sh", "-c", 'printf %s "$HOME"')).out.decode(errors="replace")
        home = told.path(node.name, "home folder", said)
        folders = (home, absolute(made.layout.scratch, home), absolute(made.layout.durable, home))
        done = ssh.run(node, ("sudo", "-n", "sh", "-s", "--", *folders), stdin=CLEAN.encode(), timeout_s=120)
        if done.code:
            raise NexaError(f"{node.name} could not be cleaned: {done.tail(3)}", hint="nexa image bake again")


def _whole(ctx: Context, region: str, owner: str, ident: str) -> Image:
    until = ctx.now() + LIMIT_S
    while True:
        image = next((image for image in aws_images.found(region, owner) if image.id == ident), None)
        state = image.state if image else "not shown yet"
        if image and state == "available":
            return image
        if state in ("failed", "error", "invalid"):
            raise NexaError(f"{ident}: the cloud could not make it ({state})", hint="nexa image delete, then again")
        if ctx.now() > until:
            raise StillRunning(f"{ident} is still {state}", hint="nexa image list; nexa teardown gives the node back")
        ctx.sleep(PAUSE_S)


def listed(ctx: Context, config: ClusterConfig | None, region: str) -> list[dict[str, Any]]:
    """Every image of ours in the region, with its age and what it costs a month at most."""
    return [
        {
            **asdict(image),
            "age_hours": round((ctx.now() - image.made_unix) / 3600, 1),
            "usd_per_month": image.usd_per_month,
        }
        for image in _ours(config, region)[1]
    ]


def delete(config: ClusterConfig | None, region: str, ident: str) -> None:
    """Raises UsageError for an image that is not ours."""
    aws_images.delete(*find(config, region, ident))


def find(config: ClusterConfig | None, region: str, ident: str) -> tuple[str, Image]:
    """The image of ours with this id, and its region. Raises UsageError when there is none."""
    region, ours = _ours(config, region)
    for image in ours:
        if image.id == ident:
            return region, image
    raise UsageError(f"{ident} is no image of nexa's in {region}", hint="nexa image list")


def _ours(config: ClusterConfig | None, region: str) -> tuple[str, list[Image]]:
    region = region or (region_wanted(config) if config else aws_client.default_region())
    if not region:
        raise UsageError("no AWS region is given", hint="--region, or set AWS_REGION")
    return region, aws_images.found(region, owner_wanted(config, aws_client.identity(region)))
