"""The durable bucket: made once by a stack of its own, used by many clusters, kept by every teardown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws import prices
from nexa_dist.plan.aws.scope import AwsScope, only_this_run
from nexa_dist.run import bundle, files
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.terraform.settings import binary
from nexa_dist.run.terraform.stack import Terraform, TerraformFailed

DURABLE = "nexa:durable"
"""Tag of the buckets that stacks/aws-durable makes: `durable` for what nodes write, `state` for Terraform's states."""


def stack(ctx: Context, name: str) -> Terraform:
    """The bucket's stack, whose state lies beside those of the clusters, in `.nexa/buckets/<name>`."""
    folder = ctx.workspace.root / ".nexa" / "buckets" / name
    return Terraform(ctx.runner, binary(ctx.workspace.root), folder, "aws-durable", keys=aws_client.keys)


@dataclass(frozen=True)
class Seen:
    """The cloud's word about a bucket's name: its owner and in which region (empty: it does not say)."""

    whose: Literal["ours", "another account's", "nobody's", "unknown"]
    region: str = ""


def look(scope: AwsScope) -> Seen:
    """Look whose the scope's bucket is. "Forbidden" alone tells nothing: ours says so too, without s3:ListBucket."""
    region = scope.region
    for _ in range(2):
        try:
            with aws_client.spoken(f"looking at bucket {scope.bucket}"):
                head = aws_client.client("s3", region).head_bucket(
                    Bucket=scope.bucket, ExpectedBucketOwner=scope.account
                )
            return Seen("ours", _region(head))
        except aws_client.Refused as error:
            there = _region(getattr(error.__cause__, "response", {}))
            if error.reason in ("404", "NoSuchBucket"):
                return Seen("nobody's")
            if error.reason in ("403", "AccessDenied", "Forbidden"):
                return Seen(_listed(scope), there)
            if error.reason not in ("301", "PermanentRedirect") or not there:
                raise
            region = there  # asked where it is
    return Seen("unknown", region)


def _region(answer: dict[str, Any]) -> str:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(answer.get("BucketRegion") or headers.get("x-amz-bucket-region") or "")


def _listed(scope: AwsScope) -> Literal["ours", "another account's", "unknown"]:
    """Looks the bucket up in the account's own list."""
    try:
        with aws_client.spoken("listing buckets"):
            rows = aws_client.client("s3", scope.region).list_buckets()["Buckets"]
    except aws_client.Refused:
        return "unknown"
    return "ours" if scope.bucket in {row["Name"] for row in rows} else "another account's"


def usable(scope: AwsScope) -> Seen:
    """`look`. Raises NexaError for a bucket that is another account's, or that may be."""
    seen = look(scope)
    if seen.whose == "another account's":
        raise NexaError(
            f"bucket {scope.bucket} is not of account {scope.account}: the name is taken, or it is free and "
            "s3:ListBucket on it is denied, which looks the same",
            hint="allow s3:ListBucket on it; bucket names are global: if this one is taken, choose another",
        )
    if seen.whose == "unknown":
        raise NexaError(
            f"bucket {scope.bucket} cannot be looked at: it is another account's, or ours and s3:ListBucket is denied",
            hint=f"allow s3:ListBucket on it (s3:ListAllMyBuckets would tell which); if it is not of account "
            f"{scope.account}, choose another name",
        )
    return seen


def notes(scope: AwsScope) -> tuple[str, ...]:
    """Notes of a plan about the bucket: that its traffic costs, when it is in another region than the nodes."""
    seen = usable(scope) if scope.bucket else Seen("nobody's")
    if seen.region in ("", scope.region):
        return ()
    usd = prices.book().between_regions.usd.get(scope.region)
    price = (
        "at an unknown price" if usd is None else f"{usd:.2f} USD/GB, {100 * usd:.2f} USD for a checkpoint of 100 GB"
    )
    where = f"bucket {scope.bucket} is in {seen.region}, the nodes will be in {scope.region}"
    return (f"{where}: what they write there is traffic between regions, not counted above ({price})",)


def kept(scope: AwsScope) -> list[str]:
    """Buckets that a teardown leaves, as far as they are ours: a name that another account has is no bucket of ours."""
    if not scope.bucket:
        return []
    try:
        whose, why = look(scope).whose, "s3:ListBucket is denied"
    except NexaError as error:
        whose, why = "unknown", str(error)
    told = {"ours": [f"bucket {scope.bucket}"], "unknown": [f"bucket {scope.bucket}, if it is ours: {why}"]}
    return told.get(whose, [])


def ensure(ctx: Context, scope: AwsScope) -> None:
    """The scope's bucket is there and ours to use. One that exists already is taken as it is."""
    refuse_state(scope)
    if not scope.bucket or usable(scope).whose == "ours":
        return
    with ctx.phase(f"bucket {scope.bucket}"):
        terraform = stack(ctx, scope.bucket)
        terraform.settle(ctx.detail, interrupt=False)
        terraform.prepare(
            bundle.root() / "terraform",
            {"region": scope.region, "owner": scope.owner, "bucket": scope.bucket, "tags": scope.labels},
        )
        try:
            terraform.apply(ctx.detail)
        except TerraformFailed as error:
            if "BucketAlreadyExists" not in str(error):
                raise
            if not terraform.resources():
                shutil.rmtree(terraform.folder)  # it would say that the bucket was made from here
            raise NexaError(
                f"bucket {scope.bucket} is not of account {scope.account}: the name is taken",
                hint="bucket names are global: choose another",
            ) from error


def refuse_state(scope: AwsScope) -> None:
    """Raises UsageError when Terraform's state would lie in a bucket that nodes write to, this cluster's or others'."""
    named = scope.state.removeprefix("s3://").partition("/")[0]
    if not named:
        return
    tags: dict[str, str] = {}
    if named != scope.bucket:
        try:
            with aws_client.spoken(f"looking at bucket {named}"):
                rows = aws_client.client("s3", scope.region).get_bucket_tagging(Bucket=named)["TagSet"]
            tags = {row["Key"]: row["Value"] for row in rows}
        except aws_client.Refused:
            tags = {}  # it has none, or none that we may see: then it is none that nexa made for nodes
    if named == scope.bucket or tags.get(DURABLE) == "durable":
        raise UsageError(
            f"state {scope.state} lies in bucket {named}, which nodes write to",
            hint="keep Terraform's state in a bucket of its own (state_bucket of terraform/stacks/aws-durable)",
        )


def before_attempt(ctx: Context, cluster: Cluster, run_id: str, attempt: int) -> None:
    """Every node of a cluster may write to its bucket: from now on to this run alone; and what says that a later
    attempt has begun is taken away, since nobody but us begins one. What our rights do not allow is said."""
    confined = only_this_run(cluster, run_id)
    if confined is None:
        return
    role, policy = confined
    try:
        with aws_client.spoken(f"role {role}"):
            aws_client.client("iam", cluster.region).put_role_policy(
                RoleName=role, PolicyName="run", PolicyDocument=json.dumps(policy)
            )
    except NexaError as error:
        ctx.say(f"warning: the nodes may write to other runs of this cluster in {cluster.bucket}: {error}")
    bucket, _, prefix = cluster.bucket.removeprefix("s3://").partition("/")
    marks = f"{prefix}/{run_id}/generation/"
    try:
        with aws_client.spoken(what := f"looking at {cluster.bucket}"):
            s3, below = aws_client.client("s3", cluster.region), {"service": "s3", "Bucket": bucket, "Prefix": marks}
            found = aws_client.rows(what, cluster.region, "list_objects_v2", "Contents[]", **below)
            for key in never_begun([row["Key"] for row in found], marks, attempt):
                s3.delete_object(Bucket=bucket, Key=key)
                ctx.say(f"warning: s3://{bucket}/{key} names an attempt that nobody began: removed")
    except NexaError as error:
        ctx.say(f"warning: nobody looked for attempts that were never begun: {error}")


def never_begun(keys: Sequence[str], marks: str, attempt: int) -> list[str]:
    """The marks of attempts that are later than `attempt`, the newest that we began, and what is no mark at all."""
    names = {key: key.removeprefix(marks) for key in keys}
    return [key for key, name in names.items() if not name.isdecimal() or len(name) > 9 or int(name) > attempt]


def delete(ctx: Context, name: str) -> None:
    """Destroys a bucket that this workspace made, with every version of everything in it."""
    terraform = stack(ctx, name)
    if not terraform.state.exists():
        raise NexaError(f"bucket {name} was not made from this workspace", hint="delete it where it was made")
    terraform.settle(ctx.detail, interrupt=False)
    terraform.give({**files.read_json(terraform.variables), "destroy_contents": True})
    terraform.apply(ctx.detail)
    terraform.destroy(ctx.detail)
