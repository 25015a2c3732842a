"""State of a stack as Terraform writes it: resources and outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nexa_dist.shape import anything, record, rows, table, text

_VALUE = anything(30, 100_000, 1 << 20)
_MANY = 100_000
STATE = record(
    {},
    {
        "resources": rows(
            record(
                {"mode": text(), "instances": rows(table(text(), _VALUE, _MANY), _MANY)},
                dict.fromkeys(("module", "type", "name"), text()),
            ),
            _MANY,
        ),
        "outputs": table(text(), record({"value": _VALUE}), _MANY),
    },
)
"""Parts that we read of a state."""


def addresses(state: Mapping[str, Any]) -> list[str]:
    """Addresses of the managed resources."""
    return [
        ".".join(part for part in (row.get("module"), row.get("type"), row.get("name")) if part)
        + (f"[{json.dumps(instance['index_key'])}]" if "index_key" in instance else "")
        for row, instance in _managed(state)
    ]


def ids(state: Mapping[str, Any]) -> set[str]:
    """The cloud's ids of the managed resources."""
    attributes = [instance.get("attributes") or {} for _, instance in _managed(state)]
    return {str(found["id"]) for found in attributes if isinstance(found, dict) and found.get("id")}


def _managed(state: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each instance of a managed resource, with its resource."""
    resources = [row for row in state.get("resources", []) if row["mode"] == "managed"]
    return [(row, instance) for row in resources for instance in row["instances"]]
