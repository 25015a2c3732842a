"""Limits of the account, asked before anything is made: quotas, the image, room for a network.

What may not be asked is said with the right that is missing, and stops nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.plan.aws import quotas
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.plan.aws.quotas import ADDRESSES, VPCS, Quota
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.refusal import QUOTAS
from nexa_dist.run.aws.client import Refused
from nexa_dist.run.aws.limits import Limits

T = TypeVar("T")
Rows = Sequence[tuple[Candidate, str]]


class Asking:
    """Asks one thing after the other, and keeps what could not be asked."""

    def __init__(self) -> None:
        self.unasked: list[str] = []

    def __call__(self, what: str, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except Refused as error:
            right = f"{error.told.action} is not allowed" if error.told.action else str(error.told)
            self.unasked.append(f"{what}: {right}")
        except NexaError as error:
            self.unasked.append(f"{what}: {error}")
        return None


def within(
    config: ClusterConfig, scope: AwsScope, rows: Rows
) -> tuple[list[tuple[Candidate, str]], list[str], list[str]]:
    """The offers that the account may have, why the others are left out, and what could not be asked.

    Raises NexaError when it may have none.
    """
    ask, limits = Asking(), Limits(scope.region)
    types = sorted({candidate.type for candidate, _ in rows})
    kinds = (
        ask("what the types are", lambda: {row["InstanceType"]: quotas.kind_of(row) for row in limits.types(types)})
        or {}
    )
    used = ask("instances that run", lambda: limits.vcpus(scope.owner, scope.cluster)) or {}
    left: dict[Quota, float] = {}
    for quota in sorted(quotas.wanted(config, rows, kinds), key=lambda q: q.code):
        limit = ask(str(quota), lambda quota=quota: limits.value(quota.service, quota.code))  # type: ignore[misc]
        if limit is not None:
            taken = sum(n for (kind, market), n in used.items() if quotas.quota_of(kind, market) == quota)
            if quota == ADDRESSES:
                taken = ask("Elastic IPs", lambda: limits.addresses(scope.owner, scope.cluster)) or 0
            left[quota] = limit - taken
    kept, dropped = quotas.judged(config, rows, kinds, left)
    if not kept:
        raise NexaError(
            f"the account may have none of the offers: {'; '.join(dropped[:8])}",
            hint=f"ask for a higher limit ({QUOTAS}), or name other offers; waiting changes nothing",
        )
    return kept, dropped, ask.unasked


def refuse_impossible(config: ClusterConfig, scope: AwsScope) -> list[str]:
    """List what could not be asked. Raises NexaError for an image that no node can boot from, and where the region has
    no room for another network."""
    ask, limits = Asking(), Limits(scope.region)
    if told := ask(f"image {scope.image}", lambda: limits.image_fault(scope.image, config.volume_gb)):
        raise NexaError(f"image {scope.image} {told}", hint="check ami, region and volume_gb in the cluster's file")
    if not config.vpc:
        there, own = ask("VPCs", lambda: limits.vpcs(scope.owner, scope.cluster)) or (0, True)
        limit = None if own else ask(str(VPCS), lambda: limits.value(VPCS.service, VPCS.code))
        if limit is not None and there >= limit:
            raise NexaError(
                f"the region has {there} VPCs, and {VPCS} allows {limit:.0f}",
                hint=f"name one of them (vpc and vpc_cidr in the cluster's file), end one, or ask for more at {QUOTAS}",
            )
    return ask.unasked
