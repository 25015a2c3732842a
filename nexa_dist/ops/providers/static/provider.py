"""Provider static, the user's own hosts, by the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.static.end import destroy
from nexa_dist.ops.providers.static.make import make
from nexa_dist.plan.health.lost import CloudWord
from nexa_dist.run.workspace import ClusterFolder

__all__ = ["destroy", "make", "plan", "proof", "says", "usage"]


def proof(receipt: Mapping[str, Any]) -> str:
    return f"{sum(map(len, receipt['removed'].values()))} things removed, 0 processes left"


def says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """Say nothing: nobody made these hosts."""
    return "", ""


def usage(ctx: Context, folder: ClusterFolder) -> float:
    """Record usage by our own clock: the hosts are on for as long as the cluster is."""
    return ctx.now()


def plan(*_: Any) -> NoReturn:
    raise UsageError("provider static has nothing to plan: its hosts are yours")
