"""run_sync.sh on this machine: what runs have in the bucket, by our own credentials."""

from __future__ import annotations

import sys

from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.run import bundle
from nexa_dist.run.runner import Result

PULL_S = 86_400.0
"""Seconds for what comes from the bucket; Ctrl-C ends it sooner."""


def sync(ctx: Context, cluster: Cluster, *words: str, timeout_s: float, stdin: bytes = b"") -> Result:
    """Run run_sync.sh on this machine."""
    from nexa_dist.run.aws import client as aws_client  # boto3 is slow to load, and nodes need none of it

    keys = aws_client.keys()
    unset = [f"-u{name}" for name, value in keys.items() if not value]
    env = {name: value for name, value in keys.items() if value} | {
        "NEXA_BUCKET": cluster.bucket,
        "NEXA_PYTHON": sys.executable,
        "PYTHONPATH": str(bundle.PACKAGE.parent),
        "AWS_DEFAULT_REGION": cluster.region,
    }
    script = str(bundle.root() / "scripts" / "run_sync.sh")
    return ctx.runner.run(("env", *unset, "bash", script, *words), env=env, stdin=stdin, timeout_s=timeout_s)
