"""Images of our own: what is baked, what is chosen, what is deleted. moto is the cloud."""

from __future__ import annotations

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.ops.cluster import image, sweep
from nexa_dist.ops.light import env_hash
from nexa_dist.ops.providers.aws import scope as aws_scope
from nexa_dist.plan.aws.scope import DEFAULT_IMAGE
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import images as aws_images
from nexa_dist.run.aws.tagged import OWNER
from tests.unit.cloud_server import NOW, Desk, Emulated, config

HOME = "us-east-1"


def baked(region: Emulated, env: str, owner: str = "ann") -> str:
    """An image of a new instance."""
    made = region.ec2.run_instances(ImageId=region.image, InstanceType="g5.xlarge", MinCount=1, MaxCount=1)
    tags = {OWNER: owner, aws_images.ENV: env, aws_images.BASE: region.image}
    return aws_images.make(HOME, made["Instances"][0]["InstanceId"], f"nexa-{env}-{owner}", tags)


def test_one_node_that_leaves_nothing_behind_is_baked() -> None:
    of = config(
        bucket="b-1-2", budget_usd=90.0, lease_minutes=5.0, idle_minutes=5.0, nodes=4, max_hours=9.0, name="x" * 32
    )
    made = image.wanted(of)
    assert (made.nodes, made.max_hours, made.bucket, made.budget_usd, made.lease_minutes) == (1, 2.0, None, None, None)
    assert made.name == f"{'x' * 27}-bake" and made.offers == of.offers
    with pytest.raises(UsageError, match="provider local has no images"):
        image.wanted(type(of).model_validate({"name": "l", "provider": "local", "nodes": 1, "gpus_per_node": 1}))


def test_the_newest_that_has_todays_environment_and_fits_is_taken(desk: Desk, emulated_region: Emulated) -> None:
    now = env_hash("3.12")
    ours = baked(emulated_region, now)
    baked(emulated_region, "of yesterday")
    baked(emulated_region, now, owner="bob")

    def chosen(**keys: object) -> str:
        return aws_scope._image(desk.ctx, config(ami=None, **keys), HOME, "ann")

    assert [found.env for found in aws_images.found(HOME, "ann")].count(now) == 1
    assert chosen() == ours and "baked" in desk.said[-1]
    assert aws_scope._image(desk.ctx, config(ami="ami-12345678"), HOME, "ann") == "ami-12345678"
    assert aws_scope._image(desk.ctx, config(ami=None), HOME, "carl") == aws_client.Cloud(HOME).image(DEFAULT_IMAGE)


def test_deleting_takes_the_snapshots_too_and_only_what_is_ours(
    desk: Desk, emulated_region: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXA_OWNER", "ann")
    ours, theirs = baked(emulated_region, "e"), baked(emulated_region, "e", owner="bob")
    (row,) = [row for row in image.listed(desk.ctx, None, HOME) if row["id"] == ours]
    assert row["usd_per_month"] == round(row["gb"] * 0.05, 2) > 0
    [made] = [found.made_unix for found in aws_images.found(HOME, "ann") if found.id == ours]
    assert row["age_hours"] == round((NOW - made) / 3600, 1)
    assert sweep.images_kept(desk.ctx, ["ann"], [HOME])[0][0][0] == HOME
    with pytest.raises(UsageError, match="no image of nexa's"):
        image.delete(None, HOME, theirs)
    image.delete(None, HOME, ours)
    assert ours not in [found.id for found in aws_images.found(HOME, "ann")]
    left = {snap["SnapshotId"] for snap in emulated_region.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert not left & set(row["snapshots"])
