"""What tests of the controller's cloud code share: an emulated region in this process, and a workspace with a clock."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.ops.context import Context
from nexa_dist.plan.aws.scope import DEFAULT_IMAGE, AwsScope
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import Workspace

if TYPE_CHECKING:
    from tests.cloud.client import Region

NOW = 1_800_000_000.0
HOME = "us-east-1"
UNSET = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "NEXA_OWNER", "NEXA_SSH_FROM")


def config(**keys: Any) -> ClusterConfig:
    """An aws cluster of 2 × 4 GPUs, with `keys` on top."""
    told = {"name": "c", "provider": "aws", "nodes": 2, "gpus_per_node": 4, "max_hours": 6.0}
    return ClusterConfig.model_validate({**told, "region": HOME, "ssh_from": ["198.51.100.7/32"], **keys})


def scope(cluster: str = "c", owner: str = "ann", **keys: Any) -> AwsScope:
    """Of a cluster that was made now and lives for six hours."""
    told = {
        "workspace": "ann@desk/1",
        "created_unix": NOW,
        "expires_unix": int(NOW) + 6 * 3600,
        "image": "ami-01234567",
    }
    return AwsScope(**{"cluster": cluster, "region": HOME, "account": "1", "owner": owner, **told, **keys})


@dataclass
class Desk:
    """A workspace, what was said in it, and a clock that only sleeping moves."""

    root: Path
    said: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    @property
    def ctx(self) -> Context:
        return Context(Workspace(self.root), Runner(), self.said.append, now=self.now, sleep=self.slept.append)

    def now(self) -> float:
        return NOW + sum(self.slept)


@dataclass
class Emulated:
    """The region's control and clients of it. Every name is new, so that tests do not see each other's things."""

    control: Region
    number: Iterator[int] = field(default_factory=itertools.count)

    def name(self) -> str:
        return f"c{next(self.number)}"

    def ids(self) -> set[str]:
        """Of everything that the region has."""
        return {ident for things in self.control.state()["resources"].values() for ident in things}

    @functools.cached_property
    def image(self) -> str:
        return aws_client.Cloud(HOME).image(DEFAULT_IMAGE)

    @property
    def ec2(self) -> Any:
        return aws_client.client("ec2", HOME)

    @property
    def iam(self) -> Any:
        return aws_client.client("iam", HOME)


def emulated(forget_s: float = 600.0) -> Iterator[Emulated]:
    """The region on a free port, and an environment in which the controller finds it. It shows dead instances for
    `forget_s`."""
    from tests.cloud.api import serve
    from tests.cloud.client import Region
    from tests.cloud.types import NoHosts, Pace

    server = serve("127.0.0.1", 0, NoHosts(), Pace(pending_s=0.02, shutting_down_s=0.03, forget_s=forget_s))
    with pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", HOME)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.setenv("NO_PROXY", "*")
        _forget()
        yield Emulated(Region(server.url))
    _forget()
    server.close()


def _forget() -> None:
    """Clients of another endpoint."""
    aws_client.session.cache_clear()
    aws_client._client.cache_clear()
