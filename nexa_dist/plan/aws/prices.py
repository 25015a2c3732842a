"""The price book: GPU instance types of AWS and what they cost on demand, as of the day that the book says."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib import resources
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class GpuType:
    """One instance type. `gpu_memory_gib` is of one GPU; `network_gbps` is the peak that AWS lists (the smallest sizes
    sustain less); `efa_interfaces` is the most it can have (0: no EFA). Prices are USD/h by region; a region that is
    absent is unknown or has none."""

    name: str
    gpus: int
    gpu: str
    gpu_memory_gib: float
    vcpus: int
    memory_gib: float
    network_gbps: float
    efa_interfaces: int
    on_demand_usd_per_hour: Mapping[str, float]


@dataclass(frozen=True)
class Extra:
    """Extra on top of instances: one price by region. A region that is absent is unknown."""

    as_of: date
    source: str
    usd: Mapping[str, float]


@dataclass(frozen=True)
class Book:
    """`types` by name. No price of a type is older than `as_of`; `source` says where they come from. The extras have
    a date and a source each: gp3 disks in USD per GB and month, public IPv4 addresses in USD/h, traffic to the
    internet and to other regions in USD per GB."""

    as_of: date
    source: str
    types: Mapping[str, GpuType]
    disk: Extra
    address: Extra
    egress: Extra
    between_regions: Extra


@functools.cache
def book() -> Book:
    """The book that the package ships."""
    text = resources.files("nexa_dist.plan.aws").joinpath("prices.json").read_text(encoding="utf-8")
    raw = json.loads(text, object_hook=MappingProxyType)  # so that nobody can change it
    return Book(
        as_of=date.fromisoformat(raw["as_of"]),
        source=raw["source"],
        types=MappingProxyType({name: GpuType(name, **facts) for name, facts in raw["types"].items()}),
        disk=_extra(raw["disk_usd_per_gb_month"]),
        address=_extra(raw["address_usd_per_hour"]),
        egress=_extra(raw["egress_usd_per_gb"]),
        between_regions=_extra(raw["between_regions_usd_per_gb"]),
    )


def on_demand(instance_type: str, region: str) -> float | None:
    """USD/h of one instance; None where the book does not know it."""
    known = book().types.get(instance_type)
    return known.on_demand_usd_per_hour.get(region) if known else None


def age_days(today: date) -> int:
    """Days since the book's `as_of`."""
    return (today - book().as_of).days


def _extra(facts: Mapping[str, Any]) -> Extra:
    return Extra(date.fromisoformat(facts["as_of"]), facts["source"], facts["usd"])
