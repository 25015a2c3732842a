"""The durable bucket: made once by a stack of its own, used by many clusters, kept by every teardown."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws import Site, only_this_run
from nexa_dist.run import aws, bundle, files
from nexa_dist.run.terraform import Terraform, binary

DURABLE = "nexa:durable"
"""Tag of the buckets that stacks/aws-durable makes: `durable` for what nodes write, `state` for Terraform's states."""


def stack(ctx: Context, name: str) -> Terraform:
    """Its state lies beside those of the clusters, in `.nexa/buckets/<name>`."""
    return Terraform(
        ctx.runner, binary(ctx.workspace.root), ctx.workspace.root / ".nexa" / "buckets" / name, "aws-durable"
    )


def ensure(ctx: Context, site: Site) -> None:
    """The site's bucket is there and ours to use. One that exists already is taken as it is."""
    refuse_state(site)
    if not site.bucket:
        return
    s3 = aws.client("s3", site.region)
    try:
        with aws.spoken(f"looking at bucket {site.bucket}"):
            s3.head_bucket(Bucket=site.bucket, ExpectedBucketOwner=site.account)
        return
    except aws.Refused as error:
        if error.reason == "403":
            raise NexaError(
                f"bucket {site.bucket} is not of account {site.account}", hint="bucket names are global: choose another"
            ) from error
        if error.reason not in ("404", "NoSuchBucket"):
            raise
    with ctx.phase(f"bucket {site.bucket}"):
        terraform = stack(ctx, site.bucket)
        terraform.settle(ctx.detail, interrupt=False)
        terraform.prepare(
            bundle.root() / "terraform",
            {"region": site.region, "owner": site.owner, "bucket": site.bucket, "tags": site.labels},
        )
        terraform.apply(ctx.detail)


def refuse_state(site: Site) -> None:
    """Raises UsageError when Terraform's state would lie in a bucket that nodes write to, this cluster's or others'."""
    named = site.state.removeprefix("s3://").partition("/")[0]
    if not named:
        return
    tags: dict[str, str] = {}
    if named != site.bucket:
        try:
            with aws.spoken(f"looking at bucket {named}"):
                rows = aws.client("s3", site.region).get_bucket_tagging(Bucket=named)["TagSet"]
            tags = {row["Key"]: row["Value"] for row in rows}
        except aws.Refused:
            tags = {}  # it has none, or none that we may see: then it is none that nexa made for nodes
    if named == site.bucket or tags.get(DURABLE) == "durable":
        raise UsageError(
            f"state {site.state} lies in bucket {named}, which nodes write to",
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
        with aws.spoken(f"role {role}"):
            aws.client("iam", cluster.region).put_role_policy(
                RoleName=role, PolicyName="run", PolicyDocument=json.dumps(policy)
            )
    except NexaError as error:
        ctx.say(f"warning: the nodes may write to other runs of this cluster in {cluster.bucket}: {error}")
    bucket, _, prefix = cluster.bucket.removeprefix("s3://").partition("/")
    marks = f"{prefix}/{run_id}/generation/"
    try:
        with aws.spoken(f"looking at {cluster.bucket}"):
            s3 = aws.client("s3", cluster.region)
            found = aws.rows(s3, "list_objects_v2", "Contents[]", Bucket=bucket, Prefix=marks)
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
