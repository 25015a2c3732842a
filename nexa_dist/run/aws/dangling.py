"""Dangling parts of a resource of ours, which are nothing by themselves: a rule of a security group, a subnet's place
in a table.

A killed apply leaves such things on resources that Terraform's state knows. The state does not know them, and the cloud
refuses to make them a second time, so they have to go before the next apply.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from nexa_dist.run.aws.client import client, rows, spoken
from nexa_dist.run.aws.tagged import TaggedResource


def take_off(things: Iterable[TaggedResource], known: Collection[str]) -> Iterator[str]:
    """Takes off what hangs on those of `things` that `known` has, and is itself not in it. Yields what it was."""
    for thing in things:
        if thing.id in known and thing.kind == "security group":
            yield from _rules(thing, known)
        elif thing.id in known and thing.kind == "route table":
            yield from _associations(thing, known)


def _rules(group: TaggedResource, known: Collection[str]) -> Iterator[str]:
    ec2 = client("ec2", group.region)
    what, here = f"rules of security group {group.id}", [{"Name": "group-id", "Values": [group.id]}]
    operation, path = "describe_security_group_rules", "SecurityGroupRules[]"
    with spoken(what):
        for rule in rows(what, group.region, operation, path, Filters=here):
            ident = rule["SecurityGroupRuleId"]
            if ident not in known:
                revoke = ec2.revoke_security_group_egress if rule["IsEgress"] else ec2.revoke_security_group_ingress
                revoke(GroupId=group.id, SecurityGroupRuleIds=[ident])
                yield f"rule {ident} of {group.id}"


def _associations(table: TaggedResource, known: Collection[str]) -> Iterator[str]:
    ec2 = client("ec2", table.region)
    with spoken(f"subnets of route table {table.id}"):
        for association in table.row.get("Associations", ()):
            ident = association["RouteTableAssociationId"]
            if ident not in known and not association.get("Main"):
                ec2.disassociate_route_table(AssociationId=ident)
                yield f"subnet {association.get('SubnetId')} of {table.id}"
