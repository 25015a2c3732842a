"""Quotas of an account for an offer: which of AWS's quotas counts the offer, and what it leaves. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.refusal import QUOTAS


@dataclass(frozen=True)
class Quota:
    """One of AWS's, counted by region."""

    service: str
    code: str
    name: str

    def __str__(self) -> str:
        return f"quota {self.code} ({self.name})"


ADDRESSES = Quota("ec2", "L-0263D0A3", "EC2-VPC Elastic IPs")
VPCS = Quota("vpc", "L-F678F1CE", "VPCs per Region")
_FAMILIES = (
    (re.compile(r"(g|gr|vt)[0-9]"), "on_demand", Quota("ec2", "L-DB2E81BA", "Running On-Demand G and VT instances")),
    (re.compile(r"p[0-9]"), "on_demand", Quota("ec2", "L-417A185B", "Running On-Demand P instances")),
    (re.compile(r"(g|gr|vt)[0-9]"), "spot", Quota("ec2", "L-3819A6DF", "All G and VT Spot Instance Requests")),
    (re.compile(r"p[2-4]"), "spot", Quota("ec2", "L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests")),
    (re.compile(r"p5"), "spot", Quota("ec2", "L-C4BD4855", "All P5 Spot Instance Requests")),
)
"""vCPUs by what a type's name begins with. Which quota counts others is not known, so nobody is refused by one."""


@dataclass(frozen=True)
class Kind:
    """Properties of an instance type by AWS's word."""

    vcpus: int
    markets: frozenset[str]
    efa_interfaces: int
    """EFA interfaces of a node of ours; 0 for a type that has none. A node with several needs an Elastic IP."""


def kind_of(row: Mapping[str, Any]) -> Kind:
    """From AWS's description of the type. EFA's interfaces as terraform/stacks/aws takes them."""
    network = row.get("NetworkInfo", {})
    cards, efa = len(network.get("NetworkCards", ())), network.get("EfaInfo", {}).get("MaximumEfaInterfaces", 0)
    sold = {"spot": "spot", "on-demand": "on_demand"}
    return Kind(
        int(row["VCpuInfo"]["DefaultVCpus"]),
        frozenset(sold[name] for name in row.get("SupportedUsageClasses", sold) if name in sold),
        min(cards, efa + (efa < cards)) if network.get("EfaSupported") else 0,
    )


def quota_of(instance_type: str, market: str) -> Quota | None:
    """The quota of vCPUs that counts it."""
    return next((q for name, sold, q in _FAMILIES if sold == market and name.match(instance_type)), None)


def wanted(config: ClusterConfig, rows: Iterable[tuple[Candidate, str]], kinds: Mapping[str, Kind]) -> set[Quota]:
    """Every quota that counts one of the offers."""
    found = {quota_of(candidate.type, candidate.market) for candidate, _ in rows}
    addresses = config.efa and any(kind.efa_interfaces > 1 for kind in kinds.values())
    return {quota for quota in found if quota} | ({ADDRESSES} if addresses else set())


def judged(
    config: ClusterConfig,
    rows: Sequence[tuple[Candidate, str]],
    kinds: Mapping[str, Kind],
    left: Mapping[Quota, float],
) -> tuple[list[tuple[Candidate, str]], list[str]]:
    """The offers that the account may have, and why each other one is left out. What is not known forbids nothing."""
    why = [(row, _forbidden(config, row[0], kinds.get(row[0].type), left)) for row in rows]
    return [row for row, no in why if not no], [f"{row[0].title}: {no}" for row, no in why if no]


def _forbidden(config: ClusterConfig, offer: Candidate, kind: Kind | None, left: Mapping[Quota, float]) -> str:
    if kind is None:
        return ""
    if offer.market not in kind.markets:
        return f"AWS does not sell it by {offer.market}"
    if config.efa and not kind.efa_interfaces:
        return "it has no EFA, and efa: true asks for that"
    nodes, quota = config.nodes or 0, quota_of(offer.type, offer.market)
    needs = [(quota, nodes * kind.vcpus, "vCPUs")] if quota else []
    needs += [(ADDRESSES, nodes, "Elastic IPs")] if config.efa and kind.efa_interfaces > 1 else []
    short = [
        f"{need} {what} are needed, and {counted} leaves {max(0, left[counted]):.0f}: ask for more at {QUOTAS}"
        for counted, need, what in needs
        if need > left.get(counted, need)
    ]
    return "; ".join(short)
