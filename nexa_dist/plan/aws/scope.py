"""The aws provider: names, tags and Terraform variables of a cluster, and cluster.json from what was made."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nexa_dist.model import Cluster, Node
from nexa_dist.plan.aws.given import Given
from nexa_dist.plan.made import cluster_of, folders

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig
    from nexa_dist.plan.aws.offers import Candidate

DEFAULT_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
"""SSM parameter of AWS's Deep Learning Base image; Ubuntu 24.04 has the Python that the environment needs."""
SHARED, SCRATCH, DURABLE = "/opt/nexa/shared", "/opt/nexa/scratch", "/opt/nexa/durable"
NODE_PYTHON = "python3"


@dataclass(frozen=True)
class AwsScope:
    """Scope of a cluster: account, region, owner. Written down before the first call that makes something."""

    cluster: str
    region: str
    account: str
    owner: str
    workspace: str
    """Maker of the cluster: user@host/id of the workspace. The claim on the cluster carries it."""
    created_unix: float
    expires_unix: int
    image: str = ""
    """Resolved once: a newer image would mean other nodes."""
    bucket: str = ""
    state: str = ""
    prefix: str = ""
    """Below which nodes write in the bucket, chosen with the scope; the cluster's name for one of an older nexa."""
    labels: dict[str, str] = field(default_factory=dict)
    """The user's own tags, beside ours and never in their place."""
    given: Given = field(default_factory=Given)

    @property
    def name(self) -> str:
        """Name of the key pair that is the claim, and stem of every other name."""
        return f"nexa-{self.cluster}-{hashlib.sha256(self.owner.encode()).hexdigest()[:8]}"

    @property
    def expires(self) -> str:
        """RFC 3339, UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.expires_unix))

    @property
    def tags(self) -> dict[str, str]:
        return {
            **self.labels,
            "nexa:cluster": self.cluster,
            "nexa:owner": self.owner,
            "nexa:workspace": self.workspace,
            "nexa:expires": self.expires,
            "Name": self.name,
        }

    @property
    def backend(self) -> dict[str, str]:
        """Settings of Terraform's S3 backend; empty for a state in the cluster's folder."""
        if not self.state:
            return {}
        bucket, _, prefix = self.state.removeprefix("s3://").partition("/")
        key = "/".join(part for part in (prefix, self.name, "terraform.tfstate") if part)
        return {"bucket": bucket, "key": key, "region": self.region, "use_lockfile": "true", "encrypt": "true"}

    @property
    def place(self) -> str:
        """Key in the bucket below which the cluster's runs have a folder each, without '/' at its end."""
        return self.prefix or self.cluster

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def place_of(owner: str, cluster: str) -> str:
    """`<owner>/<cluster>`: two owners who call their clusters alike share nothing. The owner in letters that a person
    can read, with the digits that tell him from others."""
    readable = re.sub(r"[^A-Za-z0-9._=-]", "-", owner)[:60]
    return f"{readable}-{hashlib.sha256(owner.encode()).hexdigest()[:8]}/{cluster}"


def only_this_run(cluster: Cluster, run_id: str) -> tuple[str, dict[str, Any]] | None:
    """Name of the role that the nodes have, and the policy that keeps them from writing to any other run than this;
    None where there is no bucket, or one of an older nexa."""
    bucket, _, prefix = cluster.bucket.removeprefix("s3://").partition("/")
    owner, slash, _ = prefix.rpartition("/")
    if not cluster.traits.priced or not slash:
        return None
    partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(cluster.region.rsplit("-", 2)[0], "aws")
    statement = {
        "Sid": "OnlyThisRun",
        "Effect": "Deny",
        "Action": ["s3:PutObject"],
        "NotResource": [f"arn:{partition}:s3:::{bucket}/{prefix}/{run_id}/*"],
    }
    name = f"nexa-{cluster.name}-{owner.rpartition('-')[2]}"
    return name, {"Version": "2012-10-17", "Statement": [statement]}


def workspace_tag(user: str, host: str, ident: str) -> str:
    """A tag that a person can read: who, on which machine, in which workspace."""
    who = re.sub(r"[^A-Za-z0-9@._-]", "-", f"{user}@{host}")[:100]
    return f"{who}/{ident}"


def tfvars(
    config: ClusterConfig,
    scope: AwsScope,
    chosen: Candidate,
    zones: Iterable[str],
    ssh_dir: str,
    ssh_from: Sequence[str],
) -> dict[str, Any]:
    """Variables of terraform/stacks/aws. `zones` are those of every candidate: moving the gang moves no network."""
    names = list(config.node_names)
    given = scope.given
    together = config.placement_group is True or (config.placement_group is None and len(names) > 1)
    return {
        "region": scope.region,
        "cluster": scope.cluster,
        "owner": scope.owner,
        "workspace": scope.workspace,
        "expires": scope.expires,
        "expires_unix": scope.expires_unix,
        "max_hours": config.max_hours,
        "lease_s": round((config.lease_minutes or 0) * 60),
        "idle_s": round((config.idle_minutes or 0) * 60),
        "node_names": names,
        "instance_type": chosen.type,
        "zone": chosen.zone,
        "zones": sorted({*zones, chosen.zone}),
        "market": chosen.market,
        "gpus_per_node": config.gpus_per_node,
        "ami_id": scope.image,
        "key_name": scope.name,
        "ssh_dir": ssh_dir,
        "ssh_from": sorted(ssh_from),
        "user": config.user,
        "tags": scope.labels,
        "vpc_id": given.vpc or config.vpc or "",
        "subnet_ids": given.subnets,
        "public_addresses": given.public,
        **({"vpc_cidr": config.vpc_cidr} if config.vpc_cidr else {}),
        # A reservation is used from within the group that it was made in, or from none.
        "placement_group": together and not given.reservation,
        "placement_group_name": given.group,
        "capacity_reservation": given.reservation,
        "capacity_block": given.block,
        "efa": config.efa,
        "volume_gb": config.volume_gb,
        "bucket": scope.bucket,
        "bucket_prefix": f"{scope.place}/" if scope.bucket else "",
    }


def cluster(
    config: ClusterConfig,
    scope: AwsScope,
    outputs: Mapping[str, Any],
    *,
    usd_per_hour: float,
    ssh_config: str,
) -> Cluster:
    """cluster.json from Terraform's outputs, before the nodes have told of their Python. `usd_per_hour` is the price of
    one node when it was chosen."""
    nodes = (
        Node(
            name=row["name"],
            address=row["address"],
            port=int(row["port"]),
            user=row["user"],
            gpus=int(row["gpus"]),
            price_usd_per_hour=usd_per_hour,
            private_address=row["private_address"],
            instance_id=row["id"],
            offer=f"{row['type']} {row['zone']} {row['market']}",
        )
        for row in outputs["nodes"]
    )
    return cluster_of(
        config, nodes, folders(config, NODE_PYTHON, SCRATCH, SHARED, DURABLE),
        ssh_config=ssh_config, created_unix=scope.created_unix, region=scope.region,
        bucket=f"s3://{scope.bucket}/{scope.place}" if scope.bucket else "",
    )  # fmt: skip
