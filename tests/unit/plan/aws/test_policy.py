"""Each policy fires on the plans that violate it, alone, and the good plans pass."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist.plan.aws.policy import POLICIES, Violation, findings

CASES = Path(__file__).parents[3] / "cases" / "plans"
GOOD: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in CASES.glob("*.json")}
VIOLATIONS: dict[str, list[dict[str, Any]]] = yaml.safe_load((CASES / "violations.yaml").read_text())


def set_at(value: Any, path: str, new: Any) -> None:
    """Sets what lies at a path of keys and list places; None removes it."""
    *way, last = path.split(".")
    for step in way:
        value = value[int(step) if step.isdigit() else step]
    if new is None:
        value.pop(last, None)
    else:
        value[last] = new


def violated(case: dict[str, Any]) -> dict[str, Any]:
    plan = copy.deepcopy(GOOD[case.get("plan", "cluster")])
    kind = case.get("of") or case.get("remove")
    hit = [change for change in plan["resource_changes"] if change["type"] == kind]
    hit = [change for change in hit if case.get("named", "") in change["address"]]
    assert hit or not kind, "the case names no resource of the plan"
    for change in hit:
        for path, value in case.get("change", {}).items():
            set_at(change["change"]["after"], path, value)
        change["change"]["after_unknown"].update(case.get("unknown", {}))
    if "remove" in case:
        plan["resource_changes"] = [change for change in plan["resource_changes"] if change not in hit]
    if "add" in case:
        more = case["add"]
        made = {"actions": ["create"], "after": more["after"], "after_unknown": more.get("unknown", {})}
        address = f"{more['type']}.added"
        plan["resource_changes"].append({"address": address, "mode": "managed", "type": more["type"], "change": made})
    for name, value in case.get("variables", {}).items():
        plan["variables"][name] = {"value": value}
    return plan


@pytest.mark.parametrize("name", sorted(GOOD))
def test_good_plans_pass(name: str) -> None:
    assert findings(GOOD[name]) == []


def test_the_users_tags_are_on_everything_that_has_tags() -> None:
    plan = copy.deepcopy(GOOD["cluster"])
    plan["variables"]["tags"] = {"value": {"CostCenter": "1234"}}
    lacking = findings(plan)
    assert {finding.policy for finding in lacking} == {"tagged"} and "lack CostCenter" in lacking[0].message
    kinds = {finding.address.split(".")[-2] for finding in lacking}
    assert {"aws_instance", "aws_launch_template", "aws_subnet", "aws_placement_group", "aws_vpc_endpoint"} <= kinds


def test_every_policy_has_a_violation() -> None:
    assert set(VIOLATIONS) == set(POLICIES)


@pytest.mark.parametrize(
    ("policy", "case"),
    [
        pytest.param(policy, case, id=f"{policy}-{number}")
        for policy, cases in VIOLATIONS.items()
        for number, case in enumerate(cases)
    ],
)
def test_each_violation_is_named_with_its_address(policy: str, case: dict[str, Any]) -> None:
    found = findings(violated(case))
    assert {finding.policy for finding in found} == {policy}
    assert all(finding.address and len(finding.message) > 20 for finding in found)


def test_what_is_destroyed_is_not_judged() -> None:
    plan = copy.deepcopy(GOOD["cluster"])
    for change in plan["resource_changes"]:
        if change["type"] == "aws_instance":
            change["change"] = {"actions": ["delete"], "after": None, "after_unknown": {}}
    assert findings(plan) == []


def test_price_that_ec2_filled_in_is_no_violation() -> None:
    case = {"of": "aws_instance", "change": {"instance_market_options.0.spot_options.0.max_price": "3.912"}}
    plan = violated(case)
    for change in plan["resource_changes"]:
        change["change"]["actions"] = ["no-op"]
    assert findings(plan) == []


def test_rule_of_a_group_that_exists() -> None:
    plan = copy.deepcopy(GOOD["cluster"])
    for change in plan["resource_changes"]:
        after = change["change"]["after"]
        if change["type"] == "aws_security_group":
            after["id"] = "sg-1"
        elif change["type"].startswith("aws_vpc_security_group_") and ".self" in change["address"]:
            after.update(security_group_id="sg-1", referenced_security_group_id="sg-1")
    assert findings(plan) == []


def test_the_address_says_which() -> None:
    found = findings(
        violated({"of": "aws_instance", "named": "n1", "change": {"root_block_device.0.encrypted": False}})
    )
    message = "a volume of it is not encrypted: say encrypted = true for each"
    assert found == [Violation("encrypted-volumes", 'module.nodes.aws_instance.node["n1"]', message)]
