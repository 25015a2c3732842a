"""Policies that a plan of our AWS stacks must keep, whoever wrote it: named ones over `terraform show -json PLAN`."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nexa_dist.plan.aws.tfplan import Plan, Resource

TAG_VARIABLES = ("cluster", "owner", "workspace", "expires")
"""Variables whose value every taggable resource carries as the tag `nexa:<variable>`."""
WIDEST_RANGE = {4: 8, 6: 32}
"""Bits by IP version: an ingress range with fewer bits counts as the world."""
HASH = re.compile(r"[0-9a-f]{40}")
"""Hash by which the provider shows a user_data that it keeps to itself."""
ACCESS_BLOCKS = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")

Found = Iterator[tuple[str, str]]
"""Address of a resource (or `variables`) and what is wrong with it, and what to do."""


@dataclass(frozen=True, order=True)
class Violation:
    """One violation of a policy."""

    policy: str
    address: str
    message: str


def findings(plan: Mapping[str, Any]) -> list[Violation]:
    """Every violation in the JSON form of a plan, in order; none when the plan may be applied."""
    judged = Plan(plan)
    return sorted(Violation(name, *found) for name, policy in POLICIES.items() for found in policy(judged))


def no_world_ingress(plan: Plan) -> Found:
    for resource in plan.of("aws_vpc_security_group_ingress_rule", "aws_security_group_rule"):
        if resource.type == "aws_security_group_rule" and resource.after.get("type") != "ingress":
            continue
        yield from _wide(resource, resource.after, resource.unknown)
    for resource in plan.of("aws_security_group", "aws_default_security_group"):
        for rule in resource.blocks("ingress"):
            yield from _wide(resource, rule, {})


def _wide(resource: Resource, rule: Mapping[str, Any], unknown: Mapping[str, Any]) -> Found:
    keys = ("cidr_ipv4", "cidr_ipv6", "cidr_blocks", "ipv6_cidr_blocks")
    for key in keys:
        if unknown.get(key):
            yield resource.address, f"{key} is not known before apply: give the ranges as they are"
        value = rule.get(key) or []
        for text in [value] if isinstance(value, str) else value:
            network = ipaddress.ip_network(text, strict=False)
            if network.prefixlen < WIDEST_RANGE[network.version]:
                yield resource.address, f"lets {text} in: name the ranges that need it (ssh_from), or use a mesh"
    if rule.get("prefix_list_id") or rule.get("prefix_list_ids"):
        yield resource.address, "lets a prefix list in, whose ranges nobody sees here: name the ranges"


def self_rule(plan: Plan) -> Found:
    for direction in ("ingress", "egress"):
        rules = plan.of(f"aws_vpc_security_group_{direction}_rule")
        for group in plan.of("aws_security_group"):
            if not any(_joins(rule, group) for rule in rules):
                yield group.address, f"its members may not reach each other ({direction}): add a rule that refers to it"


def _joins(rule: Resource, group: Resource) -> bool:
    """Tell whether the rule admits all traffic between the members of the group."""
    ends = ("security_group_id", "referenced_security_group_id")
    return rule.after.get("ip_protocol") == "-1" and all(rule.refers_to(group, end) for end in ends)


def imdsv2_required(plan: Plan) -> Found:
    complaint = 'its metadata may be read without a token: metadata_options { http_tokens = "required" }'
    for resource in _machines(plan):
        options = resource.blocks("metadata_options")
        if any(option.get("http_tokens") != "required" for option in options) or not (
            options or _by_template(resource)
        ):
            yield resource.address, complaint


def hop_limit(plan: Plan) -> Found:
    complaint = "its metadata may be read by containers and proxies: http_put_response_hop_limit = 1"
    for resource in _machines(plan):
        options = resource.blocks("metadata_options")
        if any(option.get("http_put_response_hop_limit") != 1 for option in options):
            yield resource.address, complaint


def _machines(plan: Plan) -> list[Resource]:
    return plan.of("aws_launch_template", "aws_instance")


def _by_template(resource: Resource) -> bool:
    """Tell whether an instance takes the arguments that it lacks from a launch template, which is judged too."""
    return resource.type == "aws_instance" and bool(resource.blocks("launch_template"))


def _volumes(resource: Resource) -> list[Mapping[str, Any]]:
    if resource.type == "aws_launch_template":
        return [ebs for mapping in resource.blocks("block_device_mappings") for ebs in mapping.get("ebs") or []]
    return resource.blocks("root_block_device") + resource.blocks("ebs_block_device")


def _all_volumes(plan: Plan, key: str, complaint: str) -> Found:
    mapped = any(_volumes(template) for template in plan.of("aws_launch_template"))
    for resource in _machines(plan):
        volumes = _volumes(resource)
        silent = resource.type == "aws_instance" and not volumes and not (mapped and _by_template(resource))
        if silent or any(str(volume.get(key)).lower() != "true" for volume in volumes):
            yield resource.address, complaint


def encrypted_volumes(plan: Plan) -> Found:
    yield from _all_volumes(plan, "encrypted", "a volume of it is not encrypted: say encrypted = true for each")
    for volume in plan.of("aws_ebs_volume"):
        if volume.after.get("encrypted") is not True:
            yield volume.address, "it is not encrypted: encrypted = true"


def volumes_deleted_with_node(plan: Plan) -> Found:
    complaint = "a volume of it stays, and is billed, when it ends: say delete_on_termination = true for each"
    yield from _all_volumes(plan, "delete_on_termination", complaint)


def shutdown_terminates(plan: Plan) -> Found:
    complaint = 'a machine that powers itself off stays: instance_initiated_shutdown_behavior = "terminate"'
    for resource in _machines(plan):
        behavior = resource.after.get("instance_initiated_shutdown_behavior")
        if behavior != "terminate" and not (behavior is None and _by_template(resource)):
            yield resource.address, complaint


def _spot_options(plan: Plan) -> Iterator[tuple[Resource, Mapping[str, Any]]]:
    for resource in _machines(plan):
        for market in resource.blocks("instance_market_options"):
            if market.get("market_type") == "spot":
                yield resource, (market.get("spot_options") or [{}])[0]


def one_time_spot(plan: Plan) -> Found:
    again = "its spot request may start it again: spot_instance_type one-time, interruption terminate"
    alone = "a request of its own outlives its machines: use aws_instance with instance_market_options"
    for resource, options in _spot_options(plan):
        kept = options.get("instance_interruption_behavior") != "terminate"
        if options.get("spot_instance_type") != "one-time" or kept:
            yield resource.address, again
    for resource in plan.of("aws_spot_instance_request", "aws_spot_fleet_request"):
        yield resource.address, alone


def no_max_price(plan: Plan) -> Found:
    complaint = "a max_price adds interruptions and saves nothing: leave it out, budget_usd is the limit"
    for resource, options in _spot_options(plan):
        if resource.new and options.get("max_price"):  # EC2 fills it in for machines that run
            yield resource.address, complaint


def deadline_first(plan: Plan) -> Found:
    late = "its user_data does something before its deadline: bootcmd with the deadline comes first"
    nodes = plan.of("aws_instance")
    for resource in _machines(plan):
        text = _visible_user_data(resource)
        if text is not None and not re.match(r"#cloud-config\n(\s*#[^\n]*\n|\s*\n)*bootcmd:\n[^:]*deadline", text):
            yield resource.address, late
    if not nodes:
        return
    unix, hours = plan.variables.get("expires_unix"), plan.variables.get("max_hours")
    if not isinstance(unix, int | float) or unix <= 0 or not isinstance(hours, int | float) or hours <= 0:
        yield "variables", "nodes without a deadline: expires_unix and max_hours must both be given"
    elif _unix(plan.variables.get("expires")) != unix:
        yield "variables", "expires and expires_unix are not the same time: one is the tag, the other ends the nodes"


def _visible_user_data(resource: Resource) -> str | None:
    """The text of user_data; None where the plan does not show it."""
    for key in ("user_data", "user_data_base64"):
        value = resource.after.get(key)
        if not isinstance(value, str) or not value or HASH.fullmatch(value):
            continue
        try:
            return base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return value
    return None


def _unix(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def tagged(plan: Plan) -> Found:
    wanted = {f"nexa:{name}": plan.variables[name] for name in TAG_VARIABLES if name in plan.variables}
    wanted.setdefault("nexa:owner", None)
    wanted |= plan.variables.get("tags") or {}  # an organisation may refuse what lacks them
    for resource in plan.resources:
        for where, tags in _tag_sets(resource):
            wrong = [key for key, value in wanted.items() if not tags.get(key) or value not in (None, tags[key])]
            if wrong:
                lack = f"{where} lack {', '.join(wrong)}"
                yield resource.address, f"{lack}: a sweep would not find it, or not know whose it is"


def _tag_sets(resource: Resource) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every set of tags that the resource has or should have."""
    if "tags" in resource.after or "tags" in resource.unknown:
        yield "its tags", resource.after.get("tags_all") or resource.after.get("tags") or {}
    if resource.type == "aws_instance":
        volumes = [volume.get("tags") for volume in _volumes(resource)]
        for tags in volumes if any(volumes) else [resource.after.get("volume_tags")]:
            yield "its volumes' tags", tags or {}
    if resource.type == "aws_launch_template":
        for specification in resource.blocks("tag_specifications"):
            yield f"its tags for {specification.get('resource_type')}", specification.get("tags") or {}


def _bucket_lacks(plan: Plan, companion: str, good: Callable[[Resource], bool], complaint: str) -> Found:
    """Buckets that no `companion` resource which is `good` belongs to."""
    companions = [resource for resource in plan.of(companion) if good(resource)]
    for bucket in plan.of("aws_s3_bucket"):
        if not any(resource.refers_to(bucket, "bucket") for resource in companions):
            yield bucket.address, complaint


def bucket_private(plan: Plan) -> Found:
    yield from _bucket_lacks(
        plan,
        "aws_s3_bucket_public_access_block",
        lambda block: all(block.after.get(key) is True for key in ACCESS_BLOCKS),
        "it may become public: an aws_s3_bucket_public_access_block with all four set to true",
    )


def bucket_versioned(plan: Plan) -> Found:
    yield from _bucket_lacks(
        plan,
        "aws_s3_bucket_versioning",
        lambda it: [block.get("status") for block in it.blocks("versioning_configuration")] == ["Enabled"],
        "what is overwritten in it is lost: an aws_s3_bucket_versioning with status Enabled",
    )


def bucket_encrypted(plan: Plan) -> Found:
    def encrypts(configuration: Resource) -> bool:
        rules = [rule.get("apply_server_side_encryption_by_default") for rule in configuration.blocks("rule")]
        return any(default[0].get("sse_algorithm") for default in rules if default)

    complaint = "its objects are not encrypted by rule: an aws_s3_bucket_server_side_encryption_configuration"
    yield from _bucket_lacks(plan, "aws_s3_bucket_server_side_encryption_configuration", encrypts, complaint)


def least_privilege_profile(plan: Plan) -> Found:
    for resource in plan.of("aws_iam_role_policy_attachment", "aws_iam_policy_attachment"):
        yield resource.address, "gives rights that nobody sees here: write them out in an aws_iam_role_policy"
    for resource in plan.of("aws_iam_role_policy", "aws_iam_policy"):
        text = resource.after.get("policy")
        if not isinstance(text, str):
            yield resource.address, "its rights are not known before apply: make the policy of values that are"
            continue
        statements = json.loads(text).get("Statement", [])
        for statement in [statements] if isinstance(statements, dict) else statements:
            if statement.get("Effect") == "Allow" and (wide := _wildcard(statement)):
                yield resource.address, f"allows {wide}: name the actions, and a bucket's prefix (bucket/prefix/*)"


def _wildcard(statement: Mapping[str, Any]) -> str:
    """Wildcard that an Allow statement leaves open; empty when it names its actions and resources."""
    if "NotAction" in statement or "NotResource" in statement:
        return "all but some"
    for key in ("Action", "Resource"):
        value = statement.get(key, [])
        for text in [value] if isinstance(value, str) else value:
            narrow = re.fullmatch(r"[^*?]+:::[^*?/]+/[^*?/]+[^*?]*/\*", text) if key == "Resource" else None
            if re.search(r"[*?]", text) and not narrow:
                return f"{key.lower()} {text}"
    return ""


def no_key_material(plan: Plan) -> Found:
    if "PRIVATE KEY" in json.dumps(plan.raw):
        yield "plan", "holds a private key in clear: keep it out of variables, outputs and everything but user_data"


POLICIES: dict[str, Callable[[Plan], Found]] = {
    policy.__name__.replace("_", "-"): policy
    for policy in (
        no_world_ingress,
        self_rule,
        imdsv2_required,
        hop_limit,
        encrypted_volumes,
        volumes_deleted_with_node,
        shutdown_terminates,
        one_time_spot,
        no_max_price,
        deadline_first,
        tagged,
        bucket_private,
        bucket_versioned,
        bucket_encrypted,
        least_privilege_profile,
        no_key_material,
    )
}
"""Policies by name: what each looks at is its function."""
