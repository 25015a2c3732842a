"""Names, tags and Terraform's variables of an aws cluster."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nexa_dist.plan.aws.given import Given
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.plan.aws.scope import cluster, only_this_run, place_of, tfvars, workspace_tag
from nexa_dist.plan.made import in_environment
from tests.unit.cloud_server import config, scope

VARIABLES = Path(__file__).parents[4] / "terraform" / "stacks" / "aws" / "variables.tf"
CHOSEN = Candidate("g6e.12xlarge", "us-east-1b", "spot", 4, 4.0)


def test_two_owners_share_no_name_and_no_state() -> None:
    ann, bob = scope(owner="ann", state="s3://team/nexa"), scope(owner="bob", state="s3://team/nexa")
    assert re.fullmatch(r"nexa-c-[0-9a-f]{8}", ann.name)
    assert ann.name != bob.name and ann.backend["key"] != bob.backend["key"]
    assert ann.tags == {
        "nexa:cluster": "c",
        "nexa:owner": "ann",
        "nexa:workspace": "ann@desk/1",
        "nexa:expires": "2027-01-15T14:00:00Z",
        "Name": ann.name,
    }


@pytest.mark.parametrize(
    ("state", "bucket", "key"),
    [("s3://team", "team", "{}/terraform.tfstate"), ("s3://team/a/b", "team", "a/b/{}/terraform.tfstate")],
)
def test_the_remote_state_lies_where_the_file_says(state: str, bucket: str, key: str) -> None:
    made = scope(state=state)
    wanted = {"bucket": bucket, "key": key.format(made.name), "region": "us-east-1"}
    assert made.backend == {**wanted, "use_lockfile": "true", "encrypt": "true"}
    assert scope().backend == {}


def test_the_stack_knows_every_variable_and_gets_all_that_have_no_default() -> None:
    text = VARIABLES.read_text(encoding="utf-8")
    known = dict(re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.M | re.S))
    made = tfvars(
        config(bucket="b0b", vpc_cidr="10.1.0.0/16"), scope(bucket="b0b"), CHOSEN, [], "/s", ["198.51.100.7/32"]
    )
    assert set(made) <= set(known)
    assert {name for name, body in known.items() if not re.search(r"^  default\s*=", body, re.M)} <= set(made)
    json.dumps(made)


def test_terraform_gets_nodes_zones_and_clocks_of_the_file() -> None:
    made = tfvars(config(), scope(), CHOSEN, ["us-east-1a", "us-east-1a"], "/s", ["2.0.0.0/8", "1.0.0.0/8"])
    assert made["node_names"] == ["n0", "n1"]
    assert made["zones"] == ["us-east-1a", "us-east-1b"]  # the chosen one too
    assert made["ssh_from"] == ["1.0.0.0/8", "2.0.0.0/8"]  # their order changes no plan
    assert made["placement_group"] is True and made["bucket_prefix"] == ""
    assert (made["lease_s"], made["idle_s"]) == (0, 0)
    clocks = tfvars(config(lease_minutes=2.51, idle_minutes=1.0), scope(), CHOSEN, [], "/s", [])
    assert (clocks["lease_s"], clocks["idle_s"]) == (151, 60)  # whole seconds, which Terraform insists on
    assert (made["tags"], made["subnet_ids"], made["public_addresses"], made["vpc_id"]) == ({}, {}, True, "")
    alone = tfvars(config(nodes=1), scope(bucket="b0b"), CHOSEN, [], "/s", [])
    assert alone["placement_group"] is False
    assert alone["bucket_prefix"] == "c/", "of a nexa before owners had prefixes: its runs stay where they are"


def test_a_network_a_reservation_and_tags_of_the_users_own() -> None:
    own = Given("vpc-1", {"us-east-1b": "subnet-1"}, False, "cr-1", True, "near")
    mine = scope(given=own, labels={"CostCenter": "1234", "nexa:owner": "eve"})
    made = tfvars(config(), mine, CHOSEN, [], "/s", [])
    assert {key: made[key] for key in ("vpc_id", "subnet_ids", "public_addresses", "tags")} == {
        "vpc_id": "vpc-1",
        "subnet_ids": {"us-east-1b": "subnet-1"},
        "public_addresses": False,
        "tags": mine.labels,
    }
    assert (made["capacity_reservation"], made["capacity_block"]) == ("cr-1", True)
    assert (made["placement_group"], made["placement_group_name"]) == (False, "near")
    assert mine.tags["CostCenter"] == "1234" and mine.tags["nexa:owner"] == "ann", "ours are ours"


@pytest.mark.parametrize(("nodes", "said", "made"), [(1, True, True), (2, False, False), (2, None, True)])
def test_several_nodes_get_a_placement_group_unless_refused(nodes: int, said: bool | None, made: bool) -> None:
    asked = config(nodes=nodes, placement_group=said)
    assert tfvars(asked, scope(), CHOSEN, [], "/s", [])["placement_group"] is made


def test_every_owner_cluster_and_run_writes_to_a_place_of_its_own() -> None:
    owners = ("user/ann", "user:ann", "user-ann", "b" * 128, "b" * 127)
    places = {place_of(owner, name) for owner in owners for name in ("c", "d")}
    assert len(places) == 10 and all(re.fullmatch(r"[A-Za-z0-9._=-]{1,69}/[cd]", place) for place in places)
    mine = scope(owner="user/ann", bucket="b0b", prefix=place_of("user/ann", "c"))
    assert tfvars(config(), mine, CHOSEN, [], "/s", [])["bucket_prefix"] == f"{mine.prefix}/"
    outputs = {"nodes": [{"name": "n0", "address": "1.2.3.4", "private_address": "10.0.0.4", "port": 22, "user": "u",
                          "gpus": 1, "id": "i-1", "type": "g5", "zone": "us-east-1a", "market": "spot"}]}  # fmt: skip
    made = cluster(config(), mine, outputs, usd_per_hour=1.0, ssh_config="/x")
    assert made.bucket == f"s3://b0b/{mine.prefix}"
    confined = only_this_run(made, "train_1")
    assert confined is not None
    role, policy = confined
    assert role == mine.name, "the role that the stack makes"
    (only,) = policy["Statement"]
    assert (only["Effect"], only["Action"]) == ("Deny", ["s3:PutObject"])
    assert only["NotResource"] == [f"arn:aws:s3:::b0b/{mine.prefix}/train_1/*"]
    abroad = only_this_run(replace(made, region="us-gov-west-1"), "r")
    assert abroad and abroad[1]["Statement"][0]["NotResource"][0].startswith("arn:aws-us-gov:s3:::")
    for other in (replace(made, bucket=""), replace(made, bucket="s3://b0b/c"), replace(made, provider="static")):
        assert only_this_run(other, "r") is None


def test_workspace_tag_holds_only_what_a_tag_takes() -> None:
    assert workspace_tag("ann", "desk.lan", "1f") == "ann@desk.lan/1f"
    tag = workspace_tag("${x}\n", "h" * 300, "1f")
    assert re.fullmatch(r"[A-Za-z0-9@._/-]{1,110}", tag) and tag.endswith("/1f")


def test_cluster_of_the_outputs() -> None:
    row = {"id": "i-0", "address": "203.0.113.1", "private_address": "10.77.0.4", "port": 22, "user": "ubuntu"}
    offer = {"type": "g6e.12xlarge", "zone": "us-east-1b", "market": "spot", "gpus": 4}
    outputs = {"nodes": [{"name": name, **row, **offer} for name in ("n0", "n1")]}
    made = cluster(config(rdzv_port=29500), scope(), outputs, usd_per_hour=4.0, ssh_config="/s/c")
    assert made.world_size == 8 and made.usd_per_hour == 8.0
    assert made.rdzv == "10.77.0.4:29500"
    assert made.nodes[0].offer == "g6e.12xlarge us-east-1b spot"
    assert in_environment(made, "e").layout.python == "/opt/nexa/shared/envs/e/bin/python"
