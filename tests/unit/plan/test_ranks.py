from __future__ import annotations

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan.money.cost import cost_usd, gpu_hours
from nexa_dist.plan.ranks import assign_ranks, split_endpoint, subset

LAYOUT = Layout(python="/py", scratch="~/s", shared="/sh", durable="/d")


def cluster(*nodes: tuple[str, int], **more: object) -> Cluster:
    made = tuple(Node(f"n{i}", address, gpus, price_usd_per_hour=2.5) for i, (address, gpus) in enumerate(nodes))
    return Cluster("c", "static", made, LAYOUT, **more)  # type: ignore[arg-type]


def test_rank_zero_is_on_the_first_node_even_when_addresses_sort_otherwise() -> None:
    plan = assign_ranks(cluster(("127.0.0.9", 2), ("127.0.0.10", 2), ("10.0.0.1", 2)), 29500)
    assert [(p.node.address, p.node_rank, p.first_rank) for p in plan.nodes] == [
        ("127.0.0.9", 0, 0),
        ("127.0.0.10", 1, 2),
        ("10.0.0.1", 2, 4),
    ]
    assert (plan.rdzv_host, plan.rdzv_port, plan.world_size) == ("127.0.0.9", 29500, 6)
    assert [plan.node_of(rank) for rank in range(6)] == ["n0", "n0", "n1", "n1", "n2", "n2"]


def test_unlike_nodes_get_unlike_shares() -> None:
    plan = assign_ranks(cluster(("a", 4), ("b", 1), ("c", 8)), 1)
    assert [(p.first_rank, p.nproc) for p in plan.nodes] == [(0, 4), (4, 1), (5, 8)]
    assert plan.world_size == 13


def test_a_run_on_a_part_has_the_clusters_order_and_its_rendezvous_only_with_its_first_node() -> None:
    whole = cluster(("a", 1), ("b", 2), ("c", 4), rdzv="a:29500")
    part = subset(whole, ["n2", "n1"])
    assert [node.name for node in part.nodes] == ["n1", "n2"] and part.usd_per_hour == 5.0
    plan = assign_ranks(part, 4711)
    assert (plan.rdzv_host, plan.rdzv_port, plan.world_size, plan.node_of(2)) == ("b", 4711, 6, "n2")
    assert subset(whole, ["n0"]).rdzv == "a:29500" and subset(whole, []) == whole
    with pytest.raises(UsageError, match="no node 'n3'"):
        subset(whole, ["n0", "n3"])


def test_nproc_per_node_is_bounded_by_the_smallest_node() -> None:
    fewer = assign_ranks(cluster(("a", 4), ("b", 2)), 1, nproc_per_node=2)
    assert (fewer.world_size, [fewer.node_of(rank) for rank in range(4)]) == (4, ["n0", "n0", "n1", "n1"])
    with pytest.raises(NexaError, match="nproc_per_node is 3, but node n1 takes 2 ranks"):
        assign_ranks(cluster(("a", 4), ("b", 2)), 1, nproc_per_node=3)


def test_c10d_is_refused_where_it_would_reorder_the_nodes() -> None:
    assert assign_ranks(cluster(("10.0.0.1", 1), ("10.0.0.2", 1), rdzv_backend="c10d"), 1).rdzv_backend == "c10d"
    with pytest.raises(NexaError, match=r"c10d would order the nodes 127\.0\.0\.10, 127\.0\.0\.9"):
        assign_ranks(cluster(("127.0.0.9", 1), ("127.0.0.10", 1), rdzv_backend="c10d"), 1)


def test_a_configured_endpoint_wins() -> None:
    plan = assign_ranks(cluster(("a", 1), rdzv="100.66.164.18:29500"), 4242)
    assert (plan.rdzv_host, plan.rdzv_port) == ("100.66.164.18", 29500)
    assert assign_ranks(cluster(("a", 1), rdzv="head"), 4242).rdzv_port == 4242


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ("", 0)), ("h:1", ("h", 1)), ("[::1]:29500", ("::1", 29500)), ("fe80::1", ("fe80::1", 0)), ("h", ("h", 0))],
)
def test_an_endpoint_is_split_into_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert split_endpoint(text) == expected


def test_cost_is_for_whole_nodes_and_hours_for_ranks() -> None:
    assert cost_usd(cluster(("a", 4), ("b", 1)), 1800) == pytest.approx(2.5)
    assert gpu_hours(5, 1800) == pytest.approx(2.5)
    assert cost_usd(cluster(("a", 1)), -5) == 0
