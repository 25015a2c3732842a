"""The durable bucket: made once by a stack of its own, used by many clusters, kept by every teardown."""

from __future__ import annotations

from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws import Site
from nexa_dist.run import aws, bundle, files
from nexa_dist.run.terraform import Terraform, binary


def stack(ctx: Context, name: str) -> Terraform:
    """Its state lies beside those of the clusters, in `.nexa/buckets/<name>`."""
    return Terraform(
        ctx.runner, binary(ctx.workspace.root), ctx.workspace.root / ".nexa" / "buckets" / name, "aws-durable"
    )


def ensure(ctx: Context, site: Site) -> None:
    """The site's bucket is there and ours to use. One that exists already is taken as it is."""
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
            bundle.root() / "terraform", {"region": site.region, "owner": site.owner, "bucket": site.bucket}
        )
        terraform.apply(ctx.detail)


def delete(ctx: Context, name: str) -> None:
    """Destroys a bucket that this workspace made, with every version of everything in it."""
    terraform = stack(ctx, name)
    if not terraform.state.exists():
        raise NexaError(f"bucket {name} was not made from this workspace", hint="delete it where it was made")
    terraform.settle(ctx.detail, interrupt=False)
    terraform.give({**files.read_json(terraform.variables), "destroy_contents": True})
    terraform.apply(ctx.detail)
    terraform.destroy(ctx.detail)
