"""The shipped price book: plausible, dated, and in agreement with AWS' own description of the types."""

from __future__ import annotations

import gzip
import importlib.util
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.plan.aws.prices import (
    Book,
    GpuType,
    age_days,
    book,
    on_demand,
)

TYPES = sorted(book().types)
USD_PER_GPU_HOUR = {  # a wrong decimal point or a price of the whole node falls outside
    "T4": (0.4, 6.0),
    "A10G": (0.9, 6.0),
    "L4": (0.7, 6.0),
    "L40S": (1.5, 12.0),
    "RTX PRO 4500": (2.0, 8.0),
    "RTX PRO Server 6000": (3.0, 12.0),
    "A100": (2.0, 6.0),
    "H100": (5.0, 10.0),
    "H200": (5.0, 12.0),
    "B200": (10.0, 25.0),
    "B300": (12.0, 30.0),
}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """DescribeInstanceTypes by type, as moto ships it. moto itself stays unimported: that takes a second."""
    spec = importlib.util.find_spec("moto")
    if spec is None or spec.origin is None:
        pytest.skip("moto is not installed")
    plain = Path(spec.origin).parent / "ec2" / "resources" / "instance_types.json"
    packed = plain.with_suffix(".json.gz")
    text = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_plausible(name: str) -> None:
    kind = book().types[name]
    assert kind.name == name
    assert kind.gpus >= 1
    assert min(kind.gpu_memory_gib, kind.vcpus, kind.memory_gib, kind.network_gbps) > 0
    low, high = USD_PER_GPU_HOUR[kind.gpu]
    for region, usd in kind.on_demand_usd_per_hour.items():
        assert low <= usd / kind.gpus <= high, region


@pytest.mark.parametrize("name", TYPES)
def test_aws_describes_the_type_alike(name: str, described: dict[str, Any]) -> None:
    kind, aws = book().types[name], described[name]
    (gpu,) = aws["GpuInfo"]["Gpus"]
    assert (kind.gpus, kind.gpu) == (gpu["Count"], gpu["Name"])
    assert kind.gpu_memory_gib == pytest.approx(gpu["MemoryInfo"]["SizeInMiB"] / 1024, abs=0.01)
    assert kind.vcpus == aws["VCpuInfo"]["DefaultVCpus"]
    assert kind.memory_gib == aws["MemoryInfo"]["SizeInMiB"] / 1024
    assert kind.efa_interfaces == aws["NetworkInfo"].get("EfaInfo", {}).get("MaximumEfaInterfaces", 0)
    assert (kind.efa_interfaces > 0) == aws["NetworkInfo"]["EfaSupported"]


def test_every_region_costs_at_least_the_cheapest_of_the_us() -> None:
    for kind in book().types.values():
        prices = kind.on_demand_usd_per_hour
        base = min((usd for region, usd in prices.items() if region.startswith("us-")), default=0.0)
        assert all(base - 1e-4 <= usd <= 1.6 * base for usd in prices.values()), kind.name


@pytest.mark.parametrize("region", ["us-east-1", "us-east-2", "us-west-2", "eu-west-1"])
def test_a_region_to_train_in_has_prices(region: str) -> None:
    assert sum(region in kind.on_demand_usd_per_hour for kind in book().types.values()) >= 10


def test_a_price_is_looked_up() -> None:
    assert on_demand("p5.48xlarge", "us-east-1") == 55.04
    assert on_demand("g4dn.xlarge", "eu-west-1") == 0.587


@pytest.mark.parametrize(
    ("name", "region"),
    [("m5.large", "us-east-1"), ("p5.48xlarge", "mars-1"), ("p5e.48xlarge", "us-east-1"), ("", "")],
)
def test_an_unknown_price_is_none(name: str, region: str) -> None:
    assert on_demand(name, region) is None


def test_disks_addresses_and_traffic_have_a_price_where_types_have_one() -> None:
    regions = {region for kind in book().types.values() for region in kind.on_demand_usd_per_hour}
    for extra, low, high in ((book().disk, 0.07, 0.16), (book().address, 0.004, 0.006), (book().egress, 0.05, 0.2)):
        assert set(extra.usd) == regions
        assert all(low <= usd <= high for usd in extra.usd.values())
        assert extra.source and extra.as_of.year > 2020
    assert (book().disk.usd["us-east-1"], book().address.usd["us-east-1"]) == (0.08, 0.005)
    assert book().egress.usd["ap-northeast-1"] == 0.114
    assert not any("mars-1" in extra.usd for extra in (book().disk, book().address, book().egress))


def test_the_book_is_dated_and_names_its_source() -> None:
    assert age_days(datetime.now(UTC).date()) >= 0
    assert book().as_of > date(2025, 6, 30), "AWS lowered P4 and P5 prices in June 2025"
    assert age_days(book().as_of + timedelta(days=40)) == 40
    assert "commit" in book().source


def test_the_book_is_loaded_once_and_cannot_change() -> None:
    first: Book = book()
    assert book() is first
    kind: GpuType = first.types["p5.48xlarge"]
    with pytest.raises(TypeError):
        kind.on_demand_usd_per_hour["us-east-1"] = 0.0  # type: ignore[index]
    with pytest.raises(TypeError):
        first.types["p5.48xlarge"] = kind  # type: ignore[index]
