"""A Terraform plan as its policies read it: `terraform show -json PLAN`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Resource:
    """A managed resource as it is after the plan. `after` lacks what is unknown; `references` is by argument."""

    address: str
    type: str
    new: bool
    """True when the plan makes the resource. Its values are then those of its configuration."""
    after: Mapping[str, Any]
    unknown: Mapping[str, Any]
    references: Mapping[str, tuple[str, ...]]

    @property
    def module(self) -> str:
        return self.address.rpartition(f".{self.type}.")[0]

    @property
    def name(self) -> str:
        """Address within its module, without index, as others refer to it."""
        return self.address.removeprefix(f"{self.module}.").partition("[")[0]

    def refers_to(self, other: Resource, argument: str) -> bool:
        """Tell whether an argument is, or for a resource that is not made yet will be, the id of another resource."""
        value = self.after.get(argument)
        if value is not None:
            return value in (other.after.get("id"), other.after.get("bucket"))
        return self.module == other.module and other.name in self.references.get(argument, ())

    def blocks(self, name: str) -> list[Mapping[str, Any]]:
        """Blocks of a name; an unknown one counts as absent."""
        value = self.after.get(name)
        return [block for block in value if isinstance(block, dict)] if isinstance(value, list) else []


class Plan:
    """A plan's resources and variables. What it destroys or forgets is left out."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.raw = plan
        self.variables = {name: entry.get("value") for name, entry in plan.get("variables", {}).items()}
        references = dict(_references(plan.get("configuration", {}).get("root_module", {}), ""))
        self.resources = [
            Resource(
                change["address"],
                change["type"],
                "create" in change["change"]["actions"],
                change["change"]["after"],
                change["change"].get("after_unknown") or {},
                references.get(re.sub(r"\[[^]]*\]", "", change["address"]), {}),
            )
            for change in plan.get("resource_changes", [])
            if change.get("mode") == "managed" and change["change"].get("after") is not None
        ]

    def of(self, *types: str) -> list[Resource]:
        return [resource for resource in self.resources if resource.type in types]


def _references(module: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """References of the arguments of a module's resources, by address without index."""
    for resource in module.get("resources", []):
        arguments = resource.get("expressions", {}).items()
        yield (
            prefix + resource["address"],
            {name: tuple(value.get("references", ())) for name, value in arguments if isinstance(value, dict)},
        )
    for name, call in module.get("module_calls", {}).items():
        yield from _references(call.get("module", {}), f"{prefix}module.{name}.")
