"""Who has which address in the mesh, who calls whom, and which network the ranks use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import UsageError
from nexa_dist.plan import mesh
from nexa_dist.plan.inventory import groups
from nexa_dist.plan.mesh import Seat
from nexa_dist.plan.static.cluster import static_cluster
from tests.unit.cloud_server import config as cloud_config

KINDS = (Seat("", "8.8.8.8"), Seat("", "10.1.1.1"), Seat("", "a.example"), Seat("", "box", jump=True))


def own(*hosts: str, **keys: Any) -> ClusterConfig:
    listed = [{"host": host, "gpus": 1} for host in hosts]
    return ClusterConfig.model_validate({"name": "c", "cluster": listed, "mesh": "wireguard", **keys})


def calls(*seats: Seat) -> dict[str, list[tuple[str, str, int]]]:
    """By node: (peer, endpoint, keepalive)."""
    links = mesh.wireguard(own(*(seat.host for seat in seats)), seats)["nexa_mesh_links"]
    return {
        name: [(peer["name"], peer["endpoint"], peer["keepalive_s"]) for peer in link["peers"]]
        for name, link in links.items()
    }


def test_addresses_follow_the_order_of_the_nodes_also_as_text() -> None:
    """c10d sorts addresses as text: n10 must not come before n2."""
    config = own(*(f"8.8.{i}.8" for i in range(64)))
    made = list(mesh.addresses(config).values())
    assert made[:2] == ["10.213.0.101", "10.213.0.102"] and made[63] == "10.213.0.164"
    assert made == sorted(made) and len(set(made)) == 64
    assert mesh.addresses(own("8.8.8.8", mesh_cidr="10.9.9.0/25")) == {"n0": "10.9.9.101"}
    narrow = mesh.addresses(own(*(f"8.8.{i}.8" for i in range(64)), mesh_cidr="10.9.9.0/25"))
    assert list(narrow.values())[::63] == ["10.9.9.1", "10.9.9.64"]


@pytest.mark.parametrize(
    ("seat", "said"),
    [
        (Seat("n0", "8.8.8.8", networks=("10.213.0.7/16",)), "overlaps 10.213.0.7/16 of n0"),
        (Seat("n0", "8.8.8.8", networks=("192.168.1.5/24", "10.0.0.1/8")), "overlaps 10.0.0.1/8 of n0"),
        (Seat("n0", "10.213.0.9"), "overlaps 10.213.0.9 of n0"),
    ],
)
def test_a_range_in_use_is_refused(seat: Seat, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        mesh.wireguard(own(seat.host), [seat])
    assert "mesh_cidr" in caught.value.hint
    mesh.wireguard(own(seat.host, mesh_cidr="172.20.0.0/24"), [seat])


def test_a_range_in_the_vpc_is_refused() -> None:
    with pytest.raises(UsageError, match=r"overlaps 10\.213\.0\.0/16 of vpc_cidr"):
        mesh.addresses(cloud_config(mesh="wireguard", vpc_cidr="10.213.0.0/16"))


def test_public_hosts_call_each_other() -> None:
    assert calls(Seat("n0", "8.8.8.8"), Seat("n1", "gpu.example.com"), Seat("n2", "2600::1")) == {
        "n0": [("n1", "gpu.example.com:51820", 0), ("n2", "[2600::1]:51820", 0)],
        "n1": [("n0", "8.8.8.8:51820", 0), ("n2", "[2600::1]:51820", 0)],
        "n2": [("n0", "8.8.8.8:51820", 0), ("n1", "gpu.example.com:51820", 0)],
    }


@pytest.mark.parametrize("hidden", [Seat("n1", "192.168.1.9"), Seat("n1", "100.66.1.9"), Seat("n1", "box", jump=True)])
def test_a_host_that_nobody_can_call_calls_and_keeps_the_way_open(hidden: Seat) -> None:
    assert calls(Seat("n0", "8.8.8.8"), hidden) == {
        "n0": [("n1", "", 0)],
        "n1": [("n0", "8.8.8.8:51820", 25)],
    }


def test_hosts_of_one_site_or_one_vpc_use_their_own_network() -> None:
    rack = calls(Seat("n0", "192.168.1.8"), Seat("n1", "192.168.1.9"))
    assert rack == {"n0": [("n1", "192.168.1.9:51820", 0)], "n1": [("n0", "192.168.1.8:51820", 0)]}
    cloud = calls(Seat("n0", "8.8.8.8", private="10.77.0.4"), Seat("n1", "8.8.4.4", private="10.77.0.5"))
    assert cloud == {"n0": [("n1", "10.77.0.5:51820", 0)], "n1": [("n0", "10.77.0.4:51820", 0)]}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_one_of_any_two_calls(first: Seat, second: Seat) -> None:
    made = mesh.wireguard(own("8.8.8.8", "8.8.4.4"), [replace(first, name="n0"), replace(second, name="n1")])
    assert any(peer["endpoint"] for link in made["nexa_mesh_links"].values() for peer in link["peers"])


@pytest.mark.parametrize(("mtus", "made"), [((), 1420), ((9001, 9001), 1420), ((1500, 1460), 1380), ((1280,), 1200)])
def test_mtu_is_that_of_the_narrowest_way(mtus: tuple[int, ...], made: int) -> None:
    assert mesh.mtu([Seat("n", "8.8.8.8", mtu=mtu) for mtu in mtus] or [Seat("n", "8.8.8.8")]) == made


def test_ranks_of_own_hosts_meet_on_the_mesh_and_those_of_a_vpc_do_not() -> None:
    assert mesh.ranks_use_mesh(own("8.8.8.8")) and mesh.ranks_use_mesh(own("8.8.8.8", mesh="tailscale"))
    assert not mesh.ranks_use_mesh(own("8.8.8.8", mesh="none"))
    assert not mesh.ranks_use_mesh(cloud_config(mesh="wireguard"))


@pytest.mark.parametrize(
    ("keys", "rdzv"),
    [({}, ""), ({"rdzv_port": 29400}, "10.213.0.101:29400"), ({"rdzv": "8.8.8.8:29500"}, "10.213.0.101:29500")],
)
def test_the_ranks_meet_at_a_mesh_address(keys: dict[str, Any], rdzv: str) -> None:
    config = own("8.8.8.8", "8.8.4.4", **keys)
    made = mesh.over_mesh(static_cluster(config, PurePath("/")), mesh.addresses(config))
    assert made.rdzv == rdzv
    assert [(node.address, node.peer_address) for node in made.nodes] == [
        ("8.8.8.8", "10.213.0.101"),
        ("8.8.4.4", "10.213.0.102"),
    ]


def test_names_in_the_tailnet_are_of_one_cluster_of_one_workspace() -> None:
    names = {
        mesh.hostname(cluster, node, workspace)
        for cluster in ("a", "a-n0", "b" * 32)
        for node in ("n0", "n0-n0", "n" * 32)
        for workspace in ("ann@x/1", "ann@x/2")
    }
    assert len(names) == 18
    assert all(len(name) <= 63 and name.startswith("nexa-") and name[-1] != "-" for name in names)


@pytest.mark.parametrize(
    ("only", "kind", "settled", "meshed"),
    [
        ((), "none", [], []),
        ((), "wireguard", [], ["n0", "n1"]),
        (("n1",), "wireguard", ["n0"], ["n0", "n1"]),  # n0 has to learn the key of n1
        (("n1",), "tailscale", ["n0"], ["n1"]),
        (("n1",), "none", ["n0"], []),
    ],
)
def test_who_is_set_up_and_who_makes_the_mesh(
    only: tuple[str, ...], kind: str, settled: list[str], meshed: list[str]
) -> None:
    made = groups(["n0", "n1"], only, kind)
    assert (list(made["settled"]["hosts"]), list(made["meshed"]["hosts"])) == (settled, meshed)
