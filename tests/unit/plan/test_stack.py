"""What a user's own Terraform stack is given, and what of its outputs is believed."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.plan import stack

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGBQXRm8zQxYMTiLIrQFbDSMNpSUKLVSCsRzkGGAcjc"
ALL = {"node_names", "ssh_public_key", "deadline_unix"}


def config(**changes: Any) -> ClusterConfig:
    base = {"name": "c", "provider": "stack", "stack": "/s", "nodes": 2, "gpus_per_node": 8, "max_hours": 4}
    return ClusterConfig.model_validate({**base, **changes})


def rows(**changes: Any) -> dict[str, Any]:
    """Outputs with a change to the second node."""
    node = {"address": "10.0.0.1", "host_key": KEY, "usd_per_hour": 2.5}
    second = {**node, "name": "n1", "address": "10.0.0.2", **changes}
    return {"nodes": [{k: v for k, v in second.items() if v != "left out"}, {**node, "name": "n0"}]}


def test_variables_are_found_in_hcl_and_json() -> None:
    sources = {
        "a.tf": 'variable "one" {\n}\n  variable two { type = string }\n# variable "three" {\nresource "x" "y" {',
        "b.tf.json": '{"variable": {"four": {}}}',
        "c.tf.json": "torn",
    }
    assert stack.declared(sources) == {"one", "two", "four"}


def test_a_stack_gets_what_it_declares_and_nothing_else() -> None:
    given = stack.variables(config(variables={"zone": "z"}), ALL | {"zone"}, KEY, {}, 1_900_000_000)
    told = {"node_names": ["n0", "n1"], "ssh_public_key": KEY, "deadline_unix": 1_900_000_000, "zone": "z"}
    assert given == told
    assert stack.variables(config(), ALL | {"deadline"}, KEY, {}, 1_900_000_000)["deadline"] == "2030-03-17T17:46:40Z"
    with pytest.raises(UsageError, match="declares no variable node_names and none ssh_public_key"):
        stack.variables(config(), {"x"}, KEY, {}, 1)
    with pytest.raises(UsageError, match="zon: the stack /s declares no such") as error:
        stack.variables(config(variables={"zon": "z"}), ALL | {"zone"}, KEY, {}, 1)
    assert error.value.hint == "did you mean zone?"


def test_nodes_are_in_rank_order_with_the_stacks_price() -> None:
    told = rows(usd_per_hour=None, id="vm-2", private_address="192.168.0.2", user="ubuntu")
    priced = config(price_usd_per_hour=4.0)
    made = stack.cluster(priced, stack.nodes(priced, told), "api", "/ssh_config", 1.0)
    assert [(n.name, n.price_usd_per_hour, n.peer_address) for n in made.nodes] == [
        ("n0", 2.5, "10.0.0.1"),
        ("n1", 4.0, "192.168.0.2"),
    ]
    assert made.nodes[1].instance_id == "vm-2"
    assert (made.ends_with, made.traits.rents, made.traits.clock) == ("api", True, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host_key": "left out"}, "0: host_key is missing"),
        ({"host_key": None}, "host_key: None is not a text"),
        ({"host_key": "ssh-ed25519 AAAA"}, "host_key: expected a fingerprint"),
        ({"address": "-oProxyCommand=x"}, "address: expected an IPv4 or IPv6 address"),
        ({"address": "10.0.0.1"}, "n0 and n1 are both 10.0.0.1:22"),
        ({"user": "a b"}, "user: expected a login name"),
        ({"port": 0}, "port: 0 is no whole number"),
        ({"name": "n2"}, "names n2, n0, and node_names is n0, n1"),
        ({"gpus": 4}, "n1 has 4 gpus, and gpus_per_node is 8"),
        ({"usd_per_hour": "left out"}, "n1: usd_per_hour is missing"),
        ({"usd_per_hour": -1}, "usd_per_hour: -1 is no number"),
        ({"id": "{{ x }}"}, "id: '{{ x }}' is not of the form"),
    ],
)
def test_an_output_that_makes_no_sense_is_named_with_its_stack(change: dict[str, Any], said: str) -> None:
    with pytest.raises(NexaError) as error:
        stack.nodes(config(), rows(**change))
    assert "output `nodes` of the stack /s" in str(error.value)
    assert said in str(error.value)


def test_a_node_that_costs_more_than_the_budget_was_counted_with_is_refused() -> None:
    with pytest.raises(NexaError, match=r"costs 2\.5000 USD/h, and the budget was counted with the 2\.0000"):
        stack.nodes(config(price_usd_per_hour=2.0, budget_usd=50), rows())


def test_what_ends_the_bill_decides_what_is_promised() -> None:
    def told(ends: Any) -> dict[str, Any]:
        return {"output_changes": {"ends_with": {"after": ends}, "nodes": {"after": [{"usd_per_hour": 2.5}] * 2}}}

    assert stack.judged(config(), told("power_off"), ALL) == "power_off"
    with pytest.raises(UsageError, match="takes no deadline"):
        stack.judged(config(), told("provider_limit"), ALL - {"deadline_unix"})
    with pytest.raises(UsageError, match="budget_usd cannot be kept"):
        stack.judged(config(price_usd_per_hour=3.0, budget_usd=50), told("api"), ALL)
    with pytest.raises(NexaError, match="not known before the apply"):
        stack.judged(config(), told(None), ALL)
    with pytest.raises(NexaError, match="none of power_off"):
        stack.judged(config(), told("sometime"), ALL)
    assert stack.planned_usd_per_hour(config(), told("api")) == 5.0
    assert stack.planned_usd_per_hour(config(), {}) is None
    report, lines, alarm = stack.forecast(5.0, 4.0, "power_off")
    assert report["worst_usd"] == pytest.approx(20.0833, abs=1e-3)
    assert not alarm
    assert "at worst 20.08 USD" in "\n".join(lines)
    report, _, alarm = stack.forecast(5.0, 4.0, "api")
    assert (report["worst_usd"], report["stops_h"]) == (None, None)
    assert "cost without end" in alarm


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget_usd": 5}, "has to be known before they are made"),
        ({"on_failure": "keep 20m"}, "no clock that could be set"),
        ({"lease_minutes": 5}, "means nothing for provider stack"),
        ({"variables": {"node_names": []}}, "node_names is given by nexa"),
        ({"variables": {"hf_token": "x"}}, "hf_token is or holds a secret"),
        ({"variables": {"db": {"password": "x"}}}, "db is or holds a secret"),
        ({"variables": {"image": "hf_AbCdEfGhIjKlMnOp1234"}}, "image is or holds a secret"),
        ({"max_hours": None}, "max_hours"),
        ({"containers": True}, "Docker is installed by root"),
    ],
)
def test_a_file_that_promises_too_much_is_refused(changes: dict[str, Any], said: str) -> None:
    data = {"name": "c", "provider": "stack", "stack": "/s", "nodes": 1, "gpus_per_node": 1, "max_hours": 1, **changes}
    with pytest.raises(ValueError, match="ClusterConfig") as error:
        ClusterConfig.model_validate({key: value for key, value in data.items() if value is not None})
    assert said in str(error.value)
