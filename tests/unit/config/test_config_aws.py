"""The keys of an aws cluster: what they take, and that hostile text in any of them stays text or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.fields import check_cidr, check_owner, region_of
from nexa_dist.config.load import load_cluster
from nexa_dist.config.rules import KEYS
from nexa_dist.errors import ConfigError

PLAIN = {"name": "c", "provider": "aws", "nodes": 2, "gpus_per_node": 4, "max_hours": 6}
HOSTILE = (
    '${file("/etc/passwd")}',
    "%{ if true }x%{ endif }",
    "{{ lookup('pipe', 'id') }}",
    "$(touch x)",
    "`id`",
    "a\nb",
    "a\n",
    "-oProxyCommand=x",
    "../../etc/passwd",
    "a\x00b",
    "a\u202eb",
    "'; drop",
    'a"b',
    "x" * 5000,
)
TEXT_KEYS = (
    "region",
    "owner",
    "user",
    "ami",
    "vpc",
    "vpc_cidr",
    "bucket",
    "state",
    "mesh_cidr",
    "capacity_reservation",
)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(**keys: Any) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**PLAIN, **keys}), encoding="utf-8")
        return path

    return written


def said(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    return str(caught.value)


def test_no_cloud_node_without_a_deadline(write: Write) -> None:
    path = write()
    path.write_text(path.read_text().replace("max_hours: 6\n", ""))
    assert "max_hours: this key is missing" in said(path)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"region": "us-east-1"}, ""),
        ({"region": "us-gov-west-1"}, ""),
        ({"region": "us-east-1a"}, "region"),
        ({"region": "US-EAST-1"}, "region"),
        ({"offers": [{"type": "g5.xlarge", "zone": "us-east-1a"}, {"type": "g5.xlarge", "zone": "us-east-1b"}]}, ""),
        (
            {"offers": [{"type": "g5.xlarge", "zone": "us-east-1a"}, {"type": "g5.xlarge", "zone": "us-west-2b"}]},
            "offers[1].zone: zone us-west-2b is not in region us-east-1",
        ),
        (
            {"region": "us-west-2", "offers": [{"type": "g5.xlarge", "zone": "us-east-1a"}]},
            "is not in region us-west-2",
        ),
        ({"offers": [{"type": "g5.xlarge", "zone": "us-east-1-bos-1a"}]}, "offers[0].zone"),
        ({"ssh_from": ["198.51.100.7/32", "203.0.113.0/24"]}, ""),
        ({"ssh_from": ["198.51.100.7"]}, ""),
        ({"ssh_from": ["0.0.0.0/0"]}, "ssh_from[0]: a network wider than /8"),
        ({"ssh_from": ["::/0"]}, "ssh_from[0]"),
        ({"ssh_from": []}, "ssh_from"),
        ({"ami": "ami-0123456789abcdef0"}, ""),
        ({"ami": "ami-01234567"}, ""),
        ({"ami": "/aws/service/deeplearning/x/latest/ami-id"}, ""),
        ({"ami": "ami-0123"}, "ami"),
        ({"ami": "ami-0123456789ABCDEF0"}, "ami"),
        ({"ami": "latest"}, "ami"),
        ({"vpc": "vpc-0123456789abcdef0", "vpc_cidr": "10.0.64.0/20"}, ""),
        ({"vpc": "vpc-0123456789abcdef0"}, "a given VPC needs vpc_cidr"),
        ({"bucket": "my-bucket"}, ""),
        ({"bucket": "My_Bucket"}, "bucket"),
        ({"state": "s3://team-state/nexa/a"}, ""),
        ({"state": "s3://team-state"}, ""),
        ({"state": "s3://team-state/"}, "state"),
        ({"state": "https://team-state"}, "state"),
        ({"state": "s3://lab/nexa", "bucket": "lab-nodes"}, ""),
        ({"state": "s3://lab/nexa", "bucket": "lab"}, "state: lies in `bucket`, which nodes write to"),
        ({"volume_gb": 49}, "volume_gb"),
        ({"wait_for_capacity_minutes": -1}, "wait_for_capacity_minutes"),
        ({"wait_for_capacity_minutes": 30}, ""),
        ({"market": "spot_then_on_demand", "max_price_usd_per_hour": 8}, ""),
        ({"price_usd_per_hour": 0}, "no instance costs nothing"),
        ({"max_price_usd_per_hour": 0.0}, "no instance costs nothing"),
        ({"budget_usd": 0}, "budget_usd"),
        ({"budget_usd": -5}, "budget_usd"),
        ({"budget_usd": float("nan")}, "budget_usd"),
        ({"budget_usd": float("inf")}, "budget_usd"),
        ({"budget_usd": 50, "on_budget": "stop", "on_failure": "keep 20m", "idle_minutes": 30}, ""),
        ({"on_failure": "keep 0m"}, "on_failure"),
        ({"on_budget": "panic"}, "on_budget"),
        ({"lease_minutes": 1}, "lease_minutes"),
        ({"efa": "yes please"}, "efa"),
        ({"subnets": ["subnet-0123456789abcdef0", "subnet-01234567"], "placement_group": False}, ""),
        ({"subnets": ["subnet-x"]}, "subnets[0]"),
        ({"subnets": []}, "subnets"),
        ({"subnets": ["subnet-01234567"] * 2}, "subnets[1]: is listed twice"),
        ({"subnets": ["subnet-01234567"], "vpc_cidr": "10.0.0.0/20"}, "vpc_cidr: `subnets` already say where"),
        ({"subnets": ["subnet-01234567"], "vpc": "vpc-01234567"}, "vpc: `subnets` already say where"),
        ({"capacity_reservation": "cr-0123456789abcdef0"}, ""),
        ({"capacity_reservation": "cb-0123456789abcdef0", "market": "on_demand", "efa": True}, ""),
        ({"capacity_reservation": "cx-0123456789abcdef0"}, "capacity_reservation"),
        ({"capacity_reservation": "cr-01234567", "market": "spot"}, "market: reserved capacity is no spot capacity"),
        ({"capacity_reservation": "cr-01234567", "offers": "cheapest"}, "offers: `capacity_reservation` says what"),
        ({"capacity_reservation": "cr-01234567", "placement_group": True}, "cannot be moved into a new placement"),
        ({"tags": {"CostCenter": "1234", "team:gpu/x": "", "a b": "ada@lab +=._:/-"}}, ""),
        ({"tags": {"CostCenter": 1234}}, 'tags.CostCenter: expected text, found 1234 (hint: quote it: "1234")'),
        ({"tags": {"nexa:owner": "eve"}}, "is not yours to give"),
        ({"tags": {"NEXA:x": "eve"}}, "is not yours to give"),
        ({"tags": {"aws:x": "y"}}, "is not yours to give"),
        ({"tags": {"name": "y"}}, "is not yours to give"),
        ({"tags": {"Team": "a", "team": "b"}}, "is given twice"),
        ({"tags": {"": "y"}}, "1 to 128"),
        ({"tags": {"a": "y" * 257}}, "at most 256"),
        ({"tags": {"a": "${file(x)}"}}, "expected letters, digits"),
        ({"tags": {f"k{i}": "v" for i in range(41)}}, "tags"),
        ({"tags": ["a"]}, "tags: expected a mapping"),
    ],
)
def test_each_form_of_a_key_is_taken_or_named_as_a_fault(write: Write, keys: dict[str, Any], fault: str) -> None:
    path = write(**keys)
    if fault:
        assert fault in said(path)
    else:
        config = load_cluster(path)
        assert all(key in config.model_fields_set for key in keys)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("key", [*TEXT_KEYS, "ssh_from", "subnets", "zone", "type"])
def test_hostile_text_is_refused_in_every_key(write: Write, key: str, text: str) -> None:
    value: dict[str, Any] = {key: [text] if key in ("ssh_from", "subnets") else text}
    if key in ("zone", "type"):
        value = {"offers": [{"type": "g5.xlarge", "zone": "us-east-1a", key: text}]}
    told = said(write(**value))
    assert key in told and told.replace("\n", "").isprintable() and len(told) < 5_000


@pytest.mark.parametrize(
    ("text", "mesh", "fault"),
    [
        ("10.231.7.0/24", "wireguard", ""),
        ("10.231.7.0/24", "tailscale", "means nothing without mesh: wireguard"),
        ("10.231.7.0/24", "none", "means nothing without mesh: wireguard"),
        ("10.231.7.0/26", "wireguard", "/25 or wider"),
        ("8.8.8.0/24", "wireguard", "private IPv4 network"),
        ("127.0.1.0/24", "wireguard", "private IPv4 network"),
        ("169.254.7.0/24", "wireguard", "private IPv4 network"),
    ],
)
def test_a_mesh_cidr_is_private_wide_enough_and_for_wireguard_alone(
    write: Write, text: str, mesh: str, fault: str
) -> None:
    path = write(mesh_cidr=text, mesh=mesh)
    if fault:
        assert fault in said(path)
    else:
        assert load_cluster(path).mesh_cidr == text


@pytest.mark.parametrize("text", [text for text in HOSTILE if text not in ("-oProxyCommand=x", "../../etc/passwd")])
@pytest.mark.parametrize("tag", ["a", None], ids=["value", "name"])
def test_a_tag_is_text_and_means_nothing_to_terraform(write: Write, tag: str | None, text: str) -> None:
    assert "tag" in said(write(tags={tag or text: text}))


def test_every_text_key_of_aws_is_in_that_test() -> None:
    """A key that is added later is attacked too, or is not text."""
    known = ClusterConfig.model_json_schema()["properties"]
    own = KEYS["aws"] - KEYS["local"] - {"mesh", "market", "offers"}
    texts = {key for key in own if "string" in json.dumps({**known[key], "description": ""})}
    assert texts == {*TEXT_KEYS, "ssh_from", "subnets", "tags", "images"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("198.51.100.7", "198.51.100.7/32"),
        ("198.51.100.7/24", "198.51.100.0/24"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", ""),
        ("0.0.0.0/1", ""),  # two halves of the world
        ("198.51.100.7/0", ""),
        ("1.2.3.4/0.0.0.0", ""),
        ("::/0", ""),
        ("2001:db8::/64", ""),  # nodes have no such address, and the stack refuses it late
        ("fe80::1%eth0/64", ""),
        ("my-laptop", ""),
        ("198.51.100.7 /32", ""),
        ("", ""),
    ],
)
def test_a_network_is_taken_in_its_normal_form_or_refused(text: str, made: str) -> None:
    if made:
        assert check_cidr(text) == made
    else:
        with pytest.raises(ValueError, match=r"such as 198\.51\.100\.7/32"):
            check_cidr(text)


@pytest.mark.parametrize(
    "text", ["ann", "user/ann", "assumed-role/Trainer", "ann+gpu@example.org", "Team A", "a" * 128]
)
def test_an_owner_is_a_plain_name(text: str) -> None:
    assert check_owner(text) == text


@pytest.mark.parametrize("text", ["", " ann", "ann ", "-ann", "ann*", "a?n", "ann\n", "änn", "a,b", "${a}", "a" * 129])
def test_what_would_match_other_owners_is_no_owner(text: str) -> None:
    """A * would match other owners' tags in a filter."""
    with pytest.raises(ValueError, match="expected 1 to 128"):
        check_owner(text)


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1a", "us-east-1"),
        ("us-gov-west-1b", "us-gov-west-1"),
        *((text, "") for text in ("us-east-1-bos-1a", "us-east-1", "", "us-east-1a\n")),
    ],
)
def test_region_of_a_zone(zone: str, region: str) -> None:
    assert region_of(zone) == region


DIGEST = "@sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"containers": True, "images": [f"nvcr.io/nvidia/pytorch:26.09-py3{DIGEST}"]}, ""),
        ({"containers": True, "images": ["pytorch:latest"]}, "images"),
        ({"images": [f"a{DIGEST}"]}, "nobody pulls them without containers: true"),
        ({"containers": True, "images": [f"a b{DIGEST}"]}, "images"),
    ],
)
def test_images_are_pinned_by_digest(write: Write, keys: dict[str, Any], fault: str) -> None:
    path = write(**keys)
    if fault:
        assert fault in said(path)
    else:
        assert load_cluster(path).images == tuple(keys["images"])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_images(write: Write, text: str) -> None:
    for image in (text, text + DIGEST, f"a{DIGEST}{text}"):
        assert "images" in said(write(containers=True, images=[image]))
