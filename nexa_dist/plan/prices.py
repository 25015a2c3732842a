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
class Book:
    """`types` by name. No figure is older than `as_of`; `source` says where the figures come from."""

    as_of: date
    source: str
    types: Mapping[str, GpuType]


@functools.cache
def book() -> Book:
    """The book that the package ships."""
    raw = json.loads(resources.files("nexa_dist.plan").joinpath("prices.json").read_text(encoding="utf-8"))
    types = {name: _gpu_type(name, facts) for name, facts in raw["types"].items()}
    return Book(date.fromisoformat(raw["as_of"]), raw["source"], MappingProxyType(types))


def on_demand(instance_type: str, region: str) -> float | None:
    """USD/h of one instance; None where the book does not know it."""
    known = book().types.get(instance_type)
    return known.on_demand_usd_per_hour.get(region) if known else None


def age_days(today: date) -> int:
    """Days since the book's `as_of`."""
    return (today - book().as_of).days


def _gpu_type(name: str, facts: Mapping[str, Any]) -> GpuType:
    prices = {region: float(usd) for region, usd in facts["on_demand_usd_per_hour"].items()}
    return GpuType(
        name=name,
        gpus=facts["gpus"],
        gpu=facts["gpu"],
        gpu_memory_gib=float(facts["gpu_memory_gib"]),
        vcpus=facts["vcpus"],
        memory_gib=float(facts["memory_gib"]),
        network_gbps=float(facts["network_gbps"]),
        efa_interfaces=facts["efa_interfaces"],
        on_demand_usd_per_hour=MappingProxyType(prices),
    )
