"""Small departures of moto from EC2 that a sweep or a second plan would trip over."""

from __future__ import annotations

import functools
import ipaddress
import json
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models import ec2_backends
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.ec2.responses import EC2Response
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix

from tests.cloud.faults import Refused

PUBLIC = ipaddress.ip_network("203.0.113.0/24")
PLAIN_HTTP = {"Bool": {"aws:SecureTransport": "false"}}
INSTANCE_FILTERS = {
    "placement-group-name": "placement.group_name",
    "instance-lifecycle": "lifecycle",
    "spot-instance-request-id": "spot_instance_request_id",
    "client-token": "client_token",
}


class Addresses:
    """Public addresses that are unique over all accounts, regions and VPCs; a freed one rests longest."""

    def __init__(self) -> None:
        self._turn = 0

    def take(self) -> str:
        used = {ip for ip in self._used() if ip}
        for _ in range(PUBLIC.num_addresses - 2):
            self._turn = self._turn % (PUBLIC.num_addresses - 2) + 1
            address = str(PUBLIC[self._turn])
            if address not in used:
                return address
        raise Refused("AddressLimitExceeded", f"All {PUBLIC.num_addresses - 2} public addresses are in use.")

    def _used(self) -> list[str | None]:
        backends = [b for account in ec2_backends.values() for b in account.values()]
        held = [eni.public_ip for b in backends for eni in b.enis.values()]
        return held + [a.public_ip for b in backends for a in b.addresses]


def get_tags(self: Any) -> list[dict[str, str]]:
    """By the resource's id, where moto matches patterns against every tag that there is."""
    kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(self.id), "")
    own = self.ec2_backend.tags.get(self.id, {})
    return [{"resource_id": self.id, "resource_type": kind, "key": k, "value": v} for k, v in own.items()]


def answers_token_once(plain: Callable[[EC2Response], ActionResult]) -> Callable[[EC2Response], ActionResult]:
    """A repeat with the client token of a call whose answer was lost is answered as that call was, and makes nothing;
    one with other parameters is refused."""
    answers: dict[tuple[str, str, str], tuple[str, ActionResult]] = {}

    def act(self: EC2Response) -> ActionResult:
        asked = {**self.params}
        key = (self.ec2_backend.account_id, self.ec2_backend.region_name, asked.pop("ClientToken", None) or "")
        fingerprint = json.dumps(asked, sort_keys=True, default=str)
        if key[2] and key in answers:
            before, answer = answers[key]
            if before != fingerprint:
                raise Refused("IdempotentParameterMismatch", f"Client token {key[2]} was used with other parameters.")
            return answer
        answer = plain(self)
        if key[2]:
            answers[key] = (fingerprint, answer)
        return answer

    return act


def keeps_template_clean(plain: Callable[[EC2Response], ActionResult]) -> Callable[[EC2Response], ActionResult]:
    """Tags of the template itself do not belong to its data, where they would show as drift."""

    def create_launch_template(self: EC2Response) -> ActionResult:
        answer = plain(self)
        template = self.ec2_backend.get_launch_template_by_name(self._get_param("LaunchTemplateName"))
        data = template.default_version().data
        specs = [s for s in data.pop("TagSpecifications", []) if s["ResourceType"] != "launch-template"]
        if specs:
            data["TagSpecifications"] = specs
        return answer

    return create_launch_template


def describes_all_templates(plain: Callable[[EC2Response], ActionResult]) -> Callable[[EC2Response], ActionResult]:
    """moto stops at 15 and gives no token."""

    def describe_launch_templates(self: EC2Response) -> ActionResult:
        self.params["MaxResults"] = 1000
        return plain(self)

    return describe_launch_templates


def template_tags(self: LaunchTemplate) -> list[dict[str, str]]:
    return self.get_tags()


def no_template_tags(self: LaunchTemplate, value: Any) -> None:
    """moto's copy at birth, which later changes would not reach."""


def modifies_shutdown(plain: Callable[[EC2Response], Any]) -> Callable[[EC2Response], Any]:
    """moto takes this attribute for a change of security groups."""

    def modify_instance_attribute(self: EC2Response) -> Any:
        value = self._get_param("InstanceInitiatedShutdownBehavior.Value")
        if value is None:
            return plain(self)
        instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
        instance.instance_initiated_shutdown_behavior = value
        return EmptyResult()

    return modify_instance_attribute


def terminate_instances(self: EC2Response) -> ActionResult:
    """Tells the state that each instance is in now; and without moto's imports of services that are not served."""
    self.error_on_dryrun()
    changed = self.ec2_backend.terminate_instances(self._get_param("InstanceIds", []))
    told = [{"InstanceId": i.id, "CurrentState": i._state, "PreviousState": before} for i, before in changed]
    return ActionResult({"TerminatingInstances": told})


def by_key_id(plain: Callable[[EC2Response], Any]) -> Callable[[EC2Response], Any]:
    """moto knows key pairs by name only, and tells that it has deleted one named None."""

    def act(self: EC2Response) -> Any:
        pairs = {pair.id: name for name, pair in self.ec2_backend.key_pairs.items()}
        asked = self._get_param("KeyPairIds", []) or [i for i in [self._get_param("KeyPairId")] if i]
        unknown = [i for i in asked if i not in pairs]
        if unknown:
            raise Refused("InvalidKeyPair.NotFound", f"The key pair '{unknown[0]}' does not exist")
        if asked:
            self.params.update(KeyNames=[pairs[i] for i in asked], KeyName=pairs[asked[0]])
        return plain(self)

    return act


def keeps_default_group(plain: Callable[[EC2Response], Any]) -> Callable[[EC2Response], Any]:
    """A VPC's default group goes with the VPC and not before."""

    def delete_security_group(self: EC2Response) -> Any:
        group = self.ec2_backend.get_security_group_from_id(self._get_param("GroupId"))
        if group and group.is_default:
            raise Refused(
                "CannotDelete", f'the specified group: "{group.id}" name: "default" cannot be deleted by a user'
            )
        return plain(self)

    return delete_security_group


def rule_description(self: SecurityGroupRule) -> str | None:
    """moto forgets the descriptions of rules that name a group."""
    return self.ip_range.get("Description") or self.source_group.get("Description")


def guards_group(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A security group that an interface or another group's rule still names cannot go."""

    def _delete_security_group(self: Any, vpc_id: str | None, group_id: str) -> Any:
        busy = any(group_id in [g.id for g in eni.group_set] for eni in self.enis.values())
        others = (g for groups in self.groups.values() for g in groups.values() if g.id != group_id)
        for rule in (r for g in others for r in [*g.ingress_rules, *g.egress_rules]):
            busy = busy or (rule.source_group or {}).get("GroupId") == group_id
        if busy:
            raise DependencyViolationError(f"resource {group_id} has a dependent object")
        self.tags.pop(group_id, None)
        return plain(self, vpc_id, group_id)

    return _delete_security_group


def guards_subnet(plain: Callable[..., Any]) -> Callable[..., Any]:
    def delete_subnet(self: Any, subnet_id: str) -> Any:
        if any(eni.subnet.id == subnet_id for eni in self.enis.values()):
            told = f"The subnet '{subnet_id}' has dependencies and cannot be deleted."
            raise DependencyViolationError(told)
        return plain(self, subnet_id)

    return delete_subnet


def guards_gateway(plain: Callable[..., Any]) -> Callable[..., Any]:
    def detach_internet_gateway(self: Any, internet_gateway_id: str, vpc_id: str) -> Any:
        if any(eni.vpc_id == vpc_id and eni.public_ip for eni in self.enis.values()):
            told = (
                f"Network {vpc_id} has some mapped public address(es). Please unmap those before detaching the gateway."
            )
            raise DependencyViolationError(told)
        return plain(self, internet_gateway_id, vpc_id)

    return detach_internet_gateway


def reports_death(plain: property, dead: Callable[[str], bool]) -> property:
    """Status checks of a machine that failed are impaired."""

    @functools.wraps(plain.fget)  # type: ignore[arg-type]
    def status(self: Any) -> dict[str, Any]:
        assert plain.fget is not None
        if dead(self.id) and self.state == "running":
            return {"Details": [{"Name": "reachability", "Status": "failed"}], "Status": "impaired"}
        found: dict[str, Any] = plain.fget(self)
        return found

    return property(status)


def tells_card(plain: property) -> property:
    """The network card of an attachment, which moto calls 0."""

    def attachment(self: Any) -> Any:
        assert plain.fget is not None
        found = plain.fget(self)
        if found:
            found.network_card_index = vars(self).get("network_card_index", 0)
        return found

    return property(attachment)


def none_when_empty(plain: property) -> property:
    """An interface without a public address has no association, not an empty one."""

    def association(self: Any) -> Any:
        assert plain.fget is not None
        return plain.fget(self) or None

    return property(association)


def speaks_tls(plain: Callable[[Any, str, str], Any]) -> Callable[[Any, str, str], Any]:
    """moto leaves conditions of a bucket's policy out, so a ban of plain HTTP would ban everything. Here HTTP stands
    for the TLS of S3."""

    def get_permission(self: Any, action: str, resource: str) -> Any:
        if self.policy is None:
            return plain(self, action, resource)
        policy = json.loads(self.policy)
        meant = [row for row in policy["Statement"] if row.get("Condition") != PLAIN_HTTP]
        kept, self.policy = self.policy, json.dumps({**policy, "Statement": meant}).encode()
        try:
            return plain(self, action, resource)
        finally:
            self.policy = kept

    return get_permission
