"""Resources that others have put into a network of ours: they keep a subnet, a group or a VPC from going, and are not
ours to end.

A mount target of EFS, a Lambda function, a load balancer, a group whose rule refers to one of ours. The cloud says only
`DependencyViolation`; Terraform asks again for twenty minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nexa_dist.run.aws.client import rows, tags_of
from nexa_dist.run.aws.tagged import CLUSTER, OWNER, TaggedResource

CARD, GROUP = "network interface", "security group"
ASKED = (
    (CARD, "describe_network_interfaces", "NetworkInterfaces[]", "NetworkInterfaceId",
     {"vpc": "vpc-id", "subnet": "subnet-id", GROUP: "group-id"}),
    (GROUP, "describe_security_groups", "SecurityGroups[]", "GroupId",
     {"vpc": "vpc-id", GROUP: "ip-permission.group-id"}),
    (GROUP, "describe_security_groups", "SecurityGroups[]", "GroupId", {GROUP: "egress.ip-permission.group-id"}),
    ("subnet", "describe_subnets", "Subnets[]", "SubnetId", {"vpc": "vpc-id"}),
    ("route table", "describe_route_tables", "RouteTables[]", "RouteTableId", {"vpc": "vpc-id"}),
    ("vpc endpoint", "describe_vpc_endpoints", "VpcEndpoints[]", "VpcEndpointId", {"vpc": "vpc-id"}),
    ("instance", "describe_instances", "Reservations[].Instances[]", "InstanceId",
     {"placement group": "placement-group-name"}),
)  # fmt: skip
"""Kind, call, path and id of what may be in the way, and the filter that finds it by each kind of ours."""
HOLDERS = frozenset(kind for *_, filters in ASKED for kind in filters)
DEAD = frozenset({"terminated", "shutting-down", "deleted", "deleting"})


@dataclass(frozen=True)
class Stranger:
    """Resource that is not ours, and the ids of what of ours it holds."""

    kind: str
    id: str
    region: str
    what: str
    """Description or name of the resource, as its maker wrote it."""
    by: str
    holds: tuple[str, ...]

    def __str__(self) -> str:
        said = f" ({self.what!r})" if self.what else ""
        return f"{self.kind} {self.id}{said}, made by {self.by}, holds {', '.join(self.holds)}"


def find(things: Iterable[TaggedResource]) -> list[Stranger]:
    """Find what is in the way of those of `things` that live and can be held."""
    alive = [(thing, (thing.region, thing.tags.get(OWNER), thing.tags.get(CLUSTER))) for thing in things if thing.alive]
    found: list[Stranger] = []
    for whose in dict.fromkeys(of for thing, of in alive if thing.kind in HOLDERS and all(of)):
        region, pair, here = whose[0], [*whose[1:]], [thing for thing, of in alive if of == whose]
        with_us = _mentioned([t.row for t in here if t.kind in ("instance", "vpc endpoint")])
        for kind, row, ident in _rows(region, here):
            if not _ours(row, pair) and not (kind == CARD and ident in with_us) and (holds := _held(row, here)):
                found.append(Stranger(kind, ident, region, _what(row), _maker(row), tuple(sorted(holds))))
    return found


def holding(strangers: Iterable[Stranger]) -> dict[str, list[str]]:
    """Strangers that hold something of ours, by the id of what is held."""
    found: dict[str, list[str]] = {}
    for stranger in strangers:
        for ident in stranger.holds:
            found.setdefault(ident, []).append(str(stranger))
    return found


def _rows(region: str, here: list[TaggedResource]) -> list[tuple[str, dict[str, Any], str]]:
    """Everything that the cloud shows in and around what is ours: kind, description, id."""
    asked = []
    for kind, call, path, ident, filters in ASKED:
        for held, name in filters.items():
            if values := [t.id for t in here if t.kind == held]:
                asked.append((kind, call, path, ident, [{"Name": name, "Values": values}]))

    def ask(question: tuple[Any, ...]) -> list[tuple[str, dict[str, Any], str]]:
        kind, call, path, ident, wanted = question
        what = f"looking for {kind}s of others in {region}"
        return [(kind, row, row[ident]) for row in rows(what, region, call, path, Filters=wanted)]

    with ThreadPoolExecutor(8) as pool:
        return list({row[2]: row for answer in pool.map(ask, asked) for row in answer}.values())


def _ours(row: dict[str, Any], pair: Sequence[str | None]) -> bool:
    """Ours by its tags, or a thing that goes by itself."""
    tags, state = tags_of(row), row.get("State")
    return (
        [tags.get(OWNER), tags.get(CLUSTER)] == pair
        or any(association.get("Main") for association in row.get("Associations") or ())
        or (state["Name"] if isinstance(state, dict) else state) in DEAD
    )


def _held(row: dict[str, Any], here: list[TaggedResource]) -> set[str]:
    """Ids of what is ours and cannot go while this is there."""
    named = _mentioned(row)
    if row.get("GroupName") == "default":
        named -= {row.get("VpcId")}  # a VPC's own group goes with it
    found = {t.id for t in here if t.kind in HOLDERS and t.id in named}
    found |= {t.id for t in here if t.id in {a.row.get("VpcId") for a in here if a.id in found}}
    if (row.get("Association") or {}).get("PublicIp"):  # a mapped address holds the gateway
        found |= {t.id for t in here if t.kind == "internet gateway" and _mentioned(t.row) & found}
    return found


def _mentioned(value: Any) -> set[Any]:
    """Every text in a description: ids among them."""
    if isinstance(value, str):
        return {value}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text for part in parts for text in _mentioned(part)}


def _what(row: dict[str, Any]) -> str:
    named = row.get("GroupName") or tags_of(row).get("Name", "")
    return ": ".join(part for part in (named, row.get("Description", "")) if part)


def _maker(row: dict[str, Any]) -> str:
    """Maker of a resource, as far as the cloud tells: an owner's tags, the stack, the service that asked for it, the
    account."""
    tags = tags_of(row)
    told = [f"{key} {tags[key]!r}" for key in (OWNER, CLUSTER, "aws:cloudformation:stack-name") if key in tags]
    if row.get("RequesterId"):
        told.append(f"{row['RequesterId']}{' (a service of AWS)' if row.get('RequesterManaged') else ''}")
    return ", ".join([*told, f"account {row.get('OwnerId', '?')}"])
