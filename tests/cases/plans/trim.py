"""Makes a fixture of a real plan: `terraform show -json PLAN | python tests/cases/plans/trim.py > cluster.json`.

Keeps what nexa_dist.plan.policy reads, and drops nulls (but for tags, whose absence means something) and local paths.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def trimmed_change(change: dict[str, Any]) -> dict[str, Any]:
    after = {
        key: value for key, value in (change["change"]["after"] or {}).items() if value is not None or key == "tags"
    }
    unknown = {key: value for key, value in change["change"]["after_unknown"].items() if value}
    kept = {"actions": change["change"]["actions"], "after": after, "after_unknown": unknown}
    return {"address": change["address"], "mode": change["mode"], "type": change["type"], "change": kept}


def trimmed_module(module: dict[str, Any]) -> dict[str, Any]:
    resources = [
        {
            "address": resource["address"],
            "expressions": {
                name: {"references": value["references"]}
                for name, value in resource.get("expressions", {}).items()
                if isinstance(value, dict) and "references" in value
            },
        }
        for resource in module.get("resources", [])
    ]
    calls = {name: {"module": trimmed_module(call["module"])} for name, call in module.get("module_calls", {}).items()}
    return {"resources": resources, "module_calls": calls}


def trimmed(plan: dict[str, Any]) -> dict[str, Any]:
    variables = plan["variables"]
    if "ssh_dir" in variables:
        variables = {**variables, "ssh_dir": {"value": "/home/me/.nexa/clusters/unit/ssh"}}
    return {
        "format_version": plan["format_version"],
        "terraform_version": plan["terraform_version"],
        "variables": variables,
        "resource_changes": [trimmed_change(change) for change in plan["resource_changes"]],
        "configuration": {"root_module": trimmed_module(plan["configuration"]["root_module"])},
    }


if __name__ == "__main__":
    json.dump(trimmed(json.load(sys.stdin)), sys.stdout, indent=1, sort_keys=True)
    print()
