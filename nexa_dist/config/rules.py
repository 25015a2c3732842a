"""Rules for the keys of cluster.yaml together: which belong to which provider, and what contradicts what."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError

from nexa_dist.config.fields import region_of, same_host
from nexa_dist.config.parts.notify import WAYS
from nexa_dist.config.parts.slurm import gpus_of

MAX_AWS_HOURS = 720

_COMMON = frozenset(
    {"name", "provider", "backend", "rdzv_backend", "rdzv_port"}
    | {"scratch", "shared", "durable", "budget_usd", "max_hours", "notify"}
)
_ROOTED = frozenset({"mesh", "mesh_cidr", "containers", "images"})
"""Keys that ask for root on the nodes."""
_MADE = frozenset(
    {"nodes", "gpus_per_node", "price_usd_per_hour", "boot_timeout_s"}
    | {"idle_minutes", "lease_minutes", "on_budget", "on_failure"}
)
KEYS: Mapping[str, frozenset[str]] = {
    "static": _COMMON | _ROOTED | {"cluster", "rdzv", "python", "ssh_config", "system_changes"},
    "local": _COMMON | _MADE,
    "stack": (_COMMON | _MADE | _ROOTED | {"stack", "variables", "python", "system_changes"})
    - {"idle_minutes", "lease_minutes"},  # its nodes have no clock of ours
    "slurm": (_COMMON | _MADE | {"slurm", "wait_for_capacity_minutes"})
    - {"idle_minutes", "lease_minutes", "max_hours", "price_usd_per_hour"},
    "aws": _COMMON
    | _MADE
    | _ROOTED
    | {
        "market",
        "offers",
        "max_price_usd_per_hour",
        "region",
        "owner",
        "ssh_from",
        "user",
        "ami",
        "vpc",
        "vpc_cidr",
        "subnets",
    }
    | {"placement_group", "capacity_reservation", "tags"}
    | {"volume_gb", "efa", "bucket", "wait_for_capacity_minutes", "state"},
}
"""The keys that mean something for a provider. Any other is refused: no setting is silently ignored."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "static": ("cluster",),
    "local": ("nodes", "gpus_per_node"),
    "stack": ("stack", "nodes", "gpus_per_node", "max_hours"),
    "slurm": ("slurm", "nodes", "gpus_per_node"),
    "aws": ("nodes", "gpus_per_node", "max_hours"),  # no node without a deadline of its own
}


def fault(loc: tuple[str | int, ...], message: str, hint: str = "", value: object = None) -> InitErrorDetails:
    """One validation error in our own words."""
    kind = PydanticCustomError("nexa", "{message}", {"message": message, "hint": hint})
    return InitErrorDetails(type=kind, loc=loc, input=value)


def together(data: dict[str, Any], known: Collection[str]) -> Iterator[InitErrorDetails]:
    """Every contradiction. `known` are all keys that there are; others are somebody else's to name."""
    provider = data.get("provider", "static")
    if "cluster" in data:
        if provider != "static" and isinstance(provider, str) and provider in KEYS:
            hint = "remove provider (or say static), or remove cluster"
            yield fault(("provider",), f"{provider} makes its own hosts, but `cluster` lists yours", hint)
        provider = "static"
        yield from _same_twice(data["cluster"])
    elif "provider" not in data:
        yield fault(
            (),
            "neither `cluster` (your own hosts) nor `provider` is given",
            "`nexa init` writes an example of both forms",
        )
        return
    if not isinstance(provider, str) or provider not in KEYS:
        return
    for key in REQUIRED[provider]:
        if key not in data:
            yield InitErrorDetails(type="missing", loc=(key,), input=data)
    for key in data:
        if key in known and key not in KEYS[provider]:
            yield _meaningless(key, provider)
    if provider == "aws":
        yield from _one_region(data)
        for key in ("price_usd_per_hour", "max_price_usd_per_hour"):
            if data.get(key) == 0:
                yield fault((key,), "no instance costs nothing", "give its price, or leave it out", data[key])
        if isinstance(hours := data.get("max_hours"), int | float) and hours > MAX_AWS_HOURS:
            yield fault(("max_hours",), f"expected at most {MAX_AWS_HOURS} with provider aws, found {hours}")
        if data.get("user") == "root":
            yield fault(("user",), "expected the image's own user, not root", "ubuntu, on Ubuntu images")
        yield from _given_network(data)
        yield from _reserved(data)
        state = data.get("state")
        if isinstance(state, str) and state.removeprefix("s3://").partition("/")[0] == data.get("bucket"):
            yield fault(("state",), "lies in `bucket`, which nodes write to", "name another bucket", state)
    if data.get("mesh_cidr") is not None and data.get("mesh") != "wireguard":
        yield fault(("mesh_cidr",), "means nothing without mesh: wireguard", "remove it, or say mesh: wireguard")
    if data.get("images") and data.get("containers") is not True:
        yield fault(("images",), "nobody pulls them without containers: true", "add it, or remove images")
    if provider == "stack":
        if data.get("budget_usd") is not None and not data.get("price_usd_per_hour"):
            why = "what the nodes cost has to be known before they are made"
            yield fault(("budget_usd",), why, "add price_usd_per_hour, the most that one node costs")
        if str(data.get("on_failure", "")).startswith("keep "):
            yield fault(("on_failure",), "its nodes have no clock that could be set", "keep or teardown")
    if provider == "slurm":
        yield from _asked_of_slurm(data)
    if data.get("containers") is True and provider in ("static", "stack") and data.get("system_changes") is not True:
        yield fault(("containers",), "Docker is installed by root", "add system_changes: true")
    if data.get("rdzv") is not None and data.get("rdzv_port") is not None:
        yield fault(("rdzv_port",), "`rdzv` already gives the port", "remove one of the two")
    yield from _told(data.get("notify"))


def _told(rows: object) -> Iterator[InitErrorDetails]:
    for index, row in enumerate(rows if isinstance(rows, list | tuple) else ()):
        given = [key for key in WAYS if isinstance(row, dict) and row.get(key) is not None]
        if isinstance(row, dict) and len(given) != 1:
            found = " and ".join(given) or "none of them"
            yield fault(("notify", index), f"exactly one of {', '.join(WAYS)} is needed, found {found}")
        elif given == ["command"]:
            for key in ("format", "from_nodes"):
                if key in row and row[key] is not False:
                    hint = "remove it: a command runs on the machine of nexa run, and gets all fields"
                    yield fault(("notify", index, key), "means nothing for a command", hint)


def _asked_of_slurm(data: dict[str, Any]) -> Iterator[InitErrorDetails]:
    slurm = data["slurm"] if isinstance(data.get("slurm"), dict) else {}
    if "nodes" in slurm:
        yield fault(("slurm", "nodes"), "`nodes` of the cluster says it", "remove it", slurm["nodes"])
    asked = gpus_of(slurm["gres"]) if isinstance(slurm.get("gres"), str) else None
    if asked is not None and isinstance(wanted := data.get("gpus_per_node"), int) and asked != wanted:
        yield fault(
            ("slurm", "gres"), f"asks for {asked} GPUs a node, and gpus_per_node is {wanted}", "make them agree"
        )
    for index, option in enumerate(slurm["options"] if isinstance(slurm.get("options"), list | tuple) else ()):
        if isinstance(option, str) and option.startswith("--comment"):
            yield fault(("slurm", "options", index), "--comment is how the job is found again", "remove it", option)
    if data.get("budget_usd") is not None and not slurm.get("usd_per_gpu_hour"):
        yield fault(("budget_usd",), "nobody knows what the nodes cost", "add slurm.usd_per_gpu_hour")
    if str(data.get("on_failure", "")).startswith("keep "):
        yield fault(("on_failure",), "its nodes have no clock that could be set", "keep or teardown")


def _given_network(data: dict[str, Any]) -> Iterator[InitErrorDetails]:
    if data.get("subnets") is not None:
        for key in ("vpc", "vpc_cidr"):
            if data.get(key) is not None:
                yield fault((key,), "`subnets` already say where the nodes are", "remove one of the two")
        named = data["subnets"] if isinstance(data["subnets"], list | tuple) else ()
        for index, subnet in enumerate(named):
            if subnet in named[:index]:
                yield fault(("subnets", index), "is listed twice", "remove one", subnet)
    elif data.get("vpc") is not None and data.get("vpc_cidr") is None:
        yield fault(
            ("vpc",),
            "a given VPC needs vpc_cidr, a free part of it",
            "add vpc_cidr, such as 10.0.64.0/20, or name `subnets` of it instead",
        )


def _reserved(data: dict[str, Any]) -> Iterator[InitErrorDetails]:
    if data.get("capacity_reservation") is None:
        return
    if data.get("market", "on_demand") != "on_demand":
        yield fault(("market",), "reserved capacity is no spot capacity", "remove it", data["market"])
    if data.get("placement_group") is True:
        hint = "remove it: nodes are in the reservation's own group, if it was made in one"
        yield fault(("placement_group",), "reserved capacity cannot be moved into a new placement group", hint)
    for key in ("offers", "max_price_usd_per_hour"):
        if key in data:
            yield fault((key,), "`capacity_reservation` says what is rented", "remove one of the two")


def _meaningless(key: str, provider: str) -> InitErrorDetails:
    what = "your own hosts (provider static)" if provider == "static" else f"provider {provider}"
    hint = "remove it"
    if key == "price_usd_per_hour" and provider == "static":
        hint = "give price_usd_per_hour to each host of `cluster`"
    elif key == "price_usd_per_hour" and provider == "slurm":
        hint = "give usd_per_gpu_hour in its section slurm"
    elif key == "max_hours" and provider == "slurm":
        hint = "slurm.time is the limit of an allocation; max_hours of train.yaml bounds a run"
    elif key == "cluster":
        hint = "remove it, or say provider: static"
    elif key == "rdzv":
        hint = "use rdzv_port: the address is not known before the nodes are made"
    return fault((key,), f"means nothing for {what}", hint)


def _one_region(data: dict[str, Any]) -> Iterator[InitErrorDetails]:
    """A gang lives in one zone, and its network in one region."""
    wanted = data.get("region")
    offers = data.get("offers")
    for index, offer in enumerate(offers if isinstance(offers, list | tuple) else ()):
        zone = offer.get("zone") if isinstance(offer, dict) else None
        if isinstance(zone, str) and (found := region_of(zone)):
            wanted = wanted or found
            if found != wanted:
                yield fault(("offers", index, "zone"), f"zone {zone} is not in region {wanted}", "one region a cluster")


def _same_twice(hosts: object) -> Iterator[InitErrorDetails]:
    places: dict[tuple[str, str], int] = {}
    names: dict[str, int] = {}
    for index, host in enumerate(hosts if isinstance(hosts, list | tuple) else ()):
        if not isinstance(host, dict):
            continue
        if isinstance(where := host.get("host"), str):
            first = places.setdefault((same_host(where), str(host.get("port", 22))), index)
            if first != index:
                yield fault(("cluster", index, "host"), f"the same host and port as cluster[{first}]", "remove one")
        name = host.get("name") or f"n{index}"
        first = names.setdefault(name, index) if isinstance(name, str) else index
        if first != index:
            yield fault(("cluster", index), f"the same name as cluster[{first}]: {name[:40]!r}", "rename one")
