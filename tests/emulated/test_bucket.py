"""Who may write where in the durable bucket, as IAM and S3 are told it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout
from nexa_dist.ops.providers.aws import bucket
from nexa_dist.plan.aws.scope import place_of
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.terraform.stack import TerraformFailed
from tests.unit.cloud_server import HOME, Desk, Emulated, scope


@pytest.fixture
def s3(emulated_region: Emulated) -> Iterator[Any]:
    yield aws_client.client("s3", HOME)


def made(emulated_region: Emulated, s3: Any, owner: str = "user/ann") -> tuple[Cluster, str, str]:
    """A cluster with a bucket; the bucket, and the role of its nodes."""
    name = emulated_region.name()
    s3.create_bucket(Bucket=f"lab-{name}")
    mine = scope(cluster=name, owner=owner, bucket=f"lab-{name}", prefix=place_of(owner, name))
    role = mine.name
    emulated_region.iam.create_role(RoleName=role, Path=f"/nexa/{name}/", AssumeRolePolicyDocument="{}")
    place = f"s3://lab-{name}/{mine.place}"
    cluster = Cluster(name, "aws", (), Layout("p", "/s", "/h", "/d"), bucket=place, region=HOME)
    return cluster, f"lab-{name}", role


def test_nodes_are_kept_to_the_run_that_they_run(emulated_region: Emulated, s3: Any, desk: Desk) -> None:
    cluster, _, role = made(emulated_region, s3)
    for run in ("train_1", "train_2"):
        bucket.before_attempt(desk.ctx, cluster, run, 1)
        said = emulated_region.iam.get_role_policy(RoleName=role, PolicyName="run")["PolicyDocument"]
        (only,) = (json.loads(said) if isinstance(said, str) else said)["Statement"]
        place = cluster.bucket.removeprefix("s3://")
        assert only["Effect"] == "Deny" and only["NotResource"] == [f"arn:aws:s3:::{place}/{run}/*"]
    assert desk.said == []


def test_a_mark_of_an_attempt_that_nobody_began_is_removed(emulated_region: Emulated, s3: Any, desk: Desk) -> None:
    cluster, name, _ = made(emulated_region, s3)
    marks = f"{cluster.bucket.partition(name + '/')[2]}/r1/generation/"
    for word in ("000001", "000002", "000003", "999999", "9" * 30, "x"):
        s3.put_object(Bucket=name, Key=marks + word, Body=b"")
    s3.put_object(Bucket=name, Key=marks.replace("r1", "r2") + "000009", Body=b"")
    bucket.before_attempt(desk.ctx, cluster, "r1", 2)
    left = [row["Key"].rpartition("/")[2] for row in s3.list_objects_v2(Bucket=name)["Contents"]]
    assert left == ["000001", "000002", "000009"]
    assert len([line for line in desk.said if "an attempt that nobody began: removed" in line]) == 4


def test_what_our_rights_do_not_allow_is_said_and_no_end(emulated_region: Emulated, s3: Any, desk: Desk) -> None:
    cluster, _, role = made(emulated_region, s3)
    emulated_region.iam.delete_role(RoleName=role)
    bucket.before_attempt(desk.ctx, cluster, "r1", 1)
    assert len(desk.said) == 1 and "the nodes may write to other runs of this cluster" in desk.said[0]


def test_a_state_lies_where_no_node_writes(emulated_region: Emulated, s3: Any) -> None:
    nodes, states = f"lab-{emulated_region.name()}", f"lab-{emulated_region.name()}"
    for name, kind in ((nodes, "durable"), (states, "state")):
        s3.create_bucket(Bucket=name)
        s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": "nexa:durable", "Value": kind}]})
    for state, own in ((f"s3://{nodes}/team", ""), (f"s3://{nodes}", nodes), (f"s3://{states}/x", states)):
        with pytest.raises(UsageError, match="which nodes write to"):
            bucket.refuse_state(scope(state=state, bucket=own))
    bucket.refuse_state(scope(state=f"s3://{states}/team", bucket=nodes))
    bucket.refuse_state(scope(state=f"s3://lab-{emulated_region.name()}", bucket=nodes))
    bucket.refuse_state(scope(bucket=nodes))


FORBIDDEN = {"code": "403", "status": 403}


def test_forbidden_is_not_another_account_s(emulated_region: Emulated, s3: Any, desk: Desk) -> None:
    """HeadBucket is denied without s3:ListBucket, whoever's the bucket is."""
    ours, other = f"lab-{emulated_region.name()}", f"lab-{emulated_region.name()}"
    s3.create_bucket(Bucket=ours)
    emulated_region.control.fault("error", call="HeadBucket", **FORBIDDEN)
    bucket.ensure(desk.ctx, scope(bucket=ours))
    assert bucket.kept(scope(bucket=ours)) == [f"bucket {ours}"]
    with pytest.raises(NexaError, match="the name is taken"):
        bucket.ensure(desk.ctx, scope(bucket=other))
    assert bucket.kept(scope(bucket=other)) == []
    emulated_region.control.fault("error", call="ListObjectsV2", code="AccessDenied", status=403)
    with pytest.raises(NexaError, match="another account's, or ours and s3:ListBucket is denied") as caught:
        bucket.notes(scope(bucket=ours))
    assert "s3:ListAllMyBuckets" in caught.value.hint
    assert bucket.kept(scope(bucket=ours)) == [f"bucket {ours}, if it is ours: s3:ListBucket is denied"]


def test_a_bucket_of_another_region_is_said_with_its_price(emulated_region: Emulated, s3: Any) -> None:
    far, near = f"lab-{emulated_region.name()}", f"lab-{emulated_region.name()}"
    s3.create_bucket(Bucket=near)
    where = {"LocationConstraint": "eu-west-1"}
    aws_client.client("s3", "eu-west-1").create_bucket(Bucket=far, CreateBucketConfiguration=where)
    (note,) = bucket.notes(scope(bucket=far))
    assert "is in eu-west-1" in note and "0.02 USD/GB, 2.00 USD for a checkpoint of 100 GB" in note
    assert bucket.notes(scope(bucket=near)) == bucket.notes(scope()) == ()
    assert bucket.notes(scope(bucket=f"lab-{emulated_region.name()}")) == ()  # it will be made where the nodes are


def test_a_redirect_is_asked_where_it_points(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def client(_: str, region: str) -> Any:
        def head_bucket(**_: str) -> dict[str, Any]:
            asked.append(region)
            headers = {"x-amz-bucket-region": "eu-west-1"}
            answer = {"ResponseMetadata": {"HTTPHeaders": headers}, "Error": {"Code": "301"}}
            if region == HOME:
                raise ClientError(answer, "HeadBucket")  # type: ignore[arg-type]
            return answer

        return SimpleNamespace(head_bucket=head_bucket)

    monkeypatch.setattr(aws_client, "client", client)
    assert bucket.look(scope(bucket="far")) == bucket.Seen("ours", "eu-west-1")
    assert asked == [HOME, "eu-west-1"]


def test_a_taken_name_is_no_bucket_of_ours(
    emulated_region: Emulated, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name was free when it was looked at, and the cloud refused to make it."""
    mine = scope(bucket=f"lab-{emulated_region.name()}")
    folder = desk.root / "stack"
    folder.mkdir()

    def refuse(*_: object) -> None:
        raise TerraformFailed("creating S3 Bucket: BucketAlreadyExists: The requested bucket name is not available.")

    made = {"settle": lambda *_, **__: None, "prepare": lambda *_: None, "apply": refuse, "resources": list}
    monkeypatch.setattr(bucket, "stack", lambda *_: SimpleNamespace(folder=folder, **made))
    with pytest.raises(NexaError, match="the name is taken") as caught:
        bucket.ensure(desk.ctx, mine)
    assert "choose another" in caught.value.hint and not folder.exists()
    assert bucket.kept(mine) == []
