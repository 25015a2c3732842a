"""The user's own Terraform stack: which variables it takes, what its outputs must say, what its bill may come to. Pure.

An output is the word of a stranger: it has a shape and bounds here, and the rest is refused.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.fields import GIVEN_TO_STACK, check_address, check_host_key, check_user
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.plan.made import at_home, cluster_of
from nexa_dist.plan.money.estimate import OVERSHOOT_S
from nexa_dist.shape import Check, Strange, maybe, number, one_of, record, rows, text, whole
from nexa_dist.traits import EndsWith

REQUIRED = ("node_names", "ssh_public_key")
"""Variables that a stack must declare: without the first no node can be told from another, without the second nobody
gets in."""
DEADLINES = ("deadline_unix", "deadline")
_VARIABLE = re.compile(r'^[ \t]*variable[ \t]+"?([A-Za-z_][A-Za-z0-9_-]*)"?[ \t]*\{', re.MULTILINE)
MEND = "docs/PROVIDERS.md says what a stack's outputs must be"


def declared(sources: Mapping[str, str]) -> set[str]:
    """Names of the variables that the root module's files declare."""
    found: set[str] = set()
    for name, content in sources.items():
        if not name.endswith(".json"):
            found |= set(_VARIABLE.findall(content))
            continue
        with contextlib.suppress(ValueError, AttributeError):  # Terraform says what is wrong with it
            told = json.loads(content).get("variable", {})
            found |= {key for block in (told if isinstance(told, list) else [told]) for key in block}
    return found


def variables(
    config: ClusterConfig, known: set[str], ssh_public_key: str, tags: Mapping[str, str], deadline_unix: int
) -> dict[str, Any]:
    """Variables that the stack is given: of ours those that it declares, and all of the user's. Raises UsageError."""
    ours = {
        "cluster": config.name,
        "node_names": list(config.node_names),
        "node_count": config.nodes,
        "gpus_per_node": config.gpus_per_node,
        "ssh_public_key": ssh_public_key,
        "tags": dict(tags),
        "deadline_unix": deadline_unix,
        "deadline": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(deadline_unix)),
    }
    assert set(ours) == set(GIVEN_TO_STACK)
    if missing := [name for name in REQUIRED if name not in known]:
        raise UsageError(
            f"the stack {config.stack} declares no variable {' and none '.join(missing)}",
            hint='variable "node_names" { type = list(string) } names the nodes to make, '
            'variable "ssh_public_key" { type = string } is who may log in to them',
        )
    for name in config.variables:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it declares: {', '.join(sorted(known))}"
            raise UsageError(f"variables: {name}: the stack {config.stack} declares no such variable", hint=hint)
    return {**config.variables, **{name: value for name, value in ours.items() if name in known}}


def labels(cluster: str, owner: str, workspace: str) -> dict[str, str]:
    """Tags in the characters that every cloud takes: lower case, digits, '-' and '_', at most 63."""
    told = {"nexa_cluster": cluster, "nexa_owner": owner, "nexa_workspace": workspace}
    return {key: re.sub(r"[^a-z0-9_-]", "-", value.lower())[:63] for key, value in told.items()}


def _as(check: Callable[[str], str], most: int) -> Check:
    def checked(value: Any) -> str:
        try:
            plain = text(most)(value)
            return check(plain if plain == value else "")
        except ValueError as error:
            raise Strange(f"{error}, found {str(value)[:60]!r}") from None

    return checked


NODES = rows(
    record(
        {"name": text(32, r"[a-z0-9-]+"), "address": _as(check_address, 253), "host_key": _as(check_host_key, 4096)},
        {
            "user": maybe(_as(check_user, 64)),
            "port": maybe(whole(1, 65535)),
            "gpus": maybe(whole(1, 64)),
            "usd_per_hour": maybe(number(0, 1e6)),
            "id": maybe(text(200, r"[A-Za-z0-9._:/-]*")),
            "private_address": maybe(_as(check_address, 253)),
        },
    ),
    64,
)
ENDLESS = (
    "ends_with api: nothing ends these nodes but nexa teardown or you. With nobody home they cost without end: "
    "max_hours and a budget of the cluster hold nothing here"
)
ENDS = one_of("power_off", "provider_limit", "api")


def output(outputs: Mapping[str, Any], name: str, check: Check, stack: str | None) -> Any:
    """The value of an output. Raises NexaError when it is missing, or is not what it has to be."""
    if outputs.get(name) is None:
        raise NexaError(f"the stack {stack} has no output `{name}`", hint=MEND)
    try:
        return check(outputs[name])
    except Strange as error:
        more = "; host-key checking is never off" if "host_key" in str(error) else ""
        raise NexaError(f"output `{name}` of the stack {stack}: {error}", hint=MEND + more) from None


def nodes(config: ClusterConfig, outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of output `nodes` in rank order. Raises NexaError with what does not fit the cluster's file."""
    found = {row["name"]: row for row in output(outputs, "nodes", NODES, config.stack)}
    told = f"output `nodes` of the stack {config.stack}"
    names, listed = config.node_names, [row["name"] for row in outputs["nodes"]]
    if sorted(listed) != sorted(names):
        raise NexaError(f"{told} names {', '.join(listed) or 'none'}, and node_names is {', '.join(names)}", hint=MEND)
    places: dict[str, str] = {}
    for name, row in found.items():
        where = f"{row['address']}:{row.get('port') or 22}"
        if (first := places.setdefault(where, name)) != name:
            raise NexaError(f"{told}: {name} and {first} are both {where}", hint=MEND)
        if (row.get("gpus") or config.gpus_per_node) != config.gpus_per_node:
            raise NexaError(f"{told}: {name} has {row['gpus']} gpus, and gpus_per_node is {config.gpus_per_node}")
        if (usd := price(config, row)) is None:
            hint = "add it, or price_usd_per_hour to the cluster's file"
            raise NexaError(
                f"{told}: {name}: usd_per_hour is missing, and a price that nobody knows is not 0", hint=hint
            )
        if config.budget_usd and usd > (config.price_usd_per_hour or 0):
            raise NexaError(
                f"{told}: {name} costs {usd:.4f} USD/h, and the budget was counted with the "
                f"{config.price_usd_per_hour:.4f} of price_usd_per_hour",
                hint="nexa teardown gives the nodes back; then raise price_usd_per_hour, which shortens their deadline",
            )
    return [found[name] for name in names]


def price(config: ClusterConfig, row: Mapping[str, Any]) -> float | None:
    """USD an hour of a node: the stack's word, else the file's."""
    told = row.get("usd_per_hour")
    return float(told) if isinstance(told, int | float) else config.price_usd_per_hour


def cluster(
    config: ClusterConfig, rows: Sequence[Mapping[str, Any]], ends_with: EndsWith, ssh_config: str, created: float
) -> Cluster:
    """cluster.json from the outputs; what the nodes themselves tell comes later."""
    made = (
        Node(
            name=row["name"],
            address=row["address"],
            gpus=config.gpus_per_node or 0,
            port=row.get("port") or 22,
            user=row.get("user") or "",
            price_usd_per_hour=price(config, row) or 0.0,
            private_address=row.get("private_address") or "",
            # Another machine has another id, or at least another key.
            instance_id=row.get("id") or f"{row['address']} {row['host_key'].rpartition(' ')[2][-43:]}",
        )
        for row in rows
    )
    return cluster_of(config, made, at_home(config), ssh_config=ssh_config, created_unix=created, ends_with=ends_with)


def judged(config: ClusterConfig, told: Mapping[str, Any], known: set[str]) -> EndsWith:
    """Judge what the planned stack says ends its bill. Raises UsageError where what follows cannot be promised."""
    outputs = {name: change.get("after") for name, change in (told.get("output_changes") or {}).items()}
    if outputs.get("ends_with") is None:
        unknown = "has an output `ends_with` that is not known before the apply"
        raise NexaError(
            f"the stack {config.stack} {unknown if 'ends_with' in outputs else 'has no output `ends_with`'}",
            hint='output "ends_with" { value = "power_off" }, or "provider_limit", or "api": ' + MEND,
        )
    if "nodes" not in outputs:
        output(outputs, "nodes", NODES, config.stack)
    found: EndsWith = output(outputs, "ends_with", ENDS, config.stack)
    if found != "api" and not known & set(DEADLINES):
        raise UsageError(
            f"the stack {config.stack} says ends_with {found}, and takes no deadline",
            hint=f"declare {' or '.join(DEADLINES)} and end each node by it, or say ends_with api",
        )
    if found == "api" and config.budget_usd:
        raise UsageError(
            f"budget_usd cannot be kept: nodes of the stack {config.stack} (ends_with api) cost until you end them",
            hint="remove it; budget_usd of train.yaml with on_budget: teardown holds while a controller is there",
        )
    return found


def planned_usd_per_hour(config: ClusterConfig, told: Mapping[str, Any]) -> float | None:
    """Price of all nodes, as far as the plan knows it; None where one is unknown."""
    after = ((told.get("output_changes") or {}).get("nodes") or {}).get("after")
    rows = after if isinstance(after, list) and len(after) == config.nodes else [{}] * (config.nodes or 0)
    prices = [price(config, row if isinstance(row, dict) else {}) for row in rows]
    known = [usd for usd in prices if usd is not None and 0 <= usd <= 1e6]
    return math.fsum(known) if len(known) == len(prices) else None


def forecast(usd_per_hour: float | None, hours: float, ends_with: EndsWith) -> tuple[dict[str, Any], list[str], str]:
    """The bill with nobody home: for programs, in lines for people, and what they must not overlook."""
    worst = None if usd_per_hour is None else usd_per_hour * (hours + OVERSHOOT_S / 3600)
    bounded = ends_with != "api"
    report = {
        "ends_with": ends_with,
        "usd_per_hour": usd_per_hour,
        "stops_h": hours if bounded else None,
        "worst_usd": round(worst, 4) if worst is not None and bounded else None,
    }
    rate = "nobody says what the nodes cost"
    if usd_per_hour is not None:
        rate = f"{usd_per_hour:.2f} USD/h by the stack's word"
    if not bounded:
        return report, [rate], ENDLESS
    who = "each node switches itself off" if ends_with == "power_off" else "the provider ends each node"
    most = "unknown" if worst is None else f"{worst:.2f} USD"
    lines = [
        rate,
        f"  at worst {most}: {who} after {hours:.1f} h, and that ends its bill, with nobody home too",
        f"  this is the stack's word (ends_with {ends_with}), and nexa has no way to prove it",
    ]
    return report, lines, ""
