from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan.runs.preflight import judge

CLUSTER = Cluster("c", "static", (Node("n0", "a", 4), Node("n1", "b", 4)), Layout("py", "~/s", "~/h", "~/d"))


def answers(**of_n1: Any) -> dict[str, dict[str, Any]]:
    route = {"interface": "eth1", "address": "1.2.3.4"}
    good = {"python": "3.11.2", "torch": "2.13.0", "gpus": ["H100"] * 4, "free_bytes": 1 << 40, "unix": 100.0}
    return {
        "n0": {**good, "peers": {"b": route}, "port": 4242, "port_error": ""},
        "n1": {**good, "peers": {"a": route}, **of_n1},
    }


def test_good_answers_give_interfaces_and_the_port() -> None:
    verdict = judge(CLUSTER, answers(python="3.11.9"), 100.0)
    assert verdict.faults == verdict.warnings == ()
    assert verdict.interfaces == {"n0": "eth1", "n1": "eth1"}
    assert verdict.port == 4242


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"error": "No such file"}, "n1: the interpreter py does not run: No such file"),
        ({"torch": None}, "n1: torch is not installed"),
        ({"torch": "2.12.0"}, "torch differs between nodes: n0 2.13.0, n1 2.12.0"),
        ({"python": "3.12.1"}, "python differs between nodes"),
        ({"gpus": ["H100"] * 3}, "n1: 3 GPUs found, 4 promised"),
        ({"free_bytes": 5 << 20}, "n1: 5 MiB free"),
        ({"peers": {"a": {"error": "Name or service not known"}}}, "n1: no route to a: Name or service"),
    ],
)
def test_each_fault_names_its_node(change: dict[str, Any], fault: str) -> None:
    assert any(f.startswith(fault) for f in judge(CLUSTER, answers(**change), 100.0).faults)


def test_gpus_that_no_rank_of_this_run_needs_are_a_warning() -> None:
    short = answers(gpus=["H100"] * 3)
    refused = judge(CLUSTER, short, 100.0, {"n0": 4, "n1": 4}).faults
    assert refused == (
        "n1: 3 GPUs found, 4 promised, and 4 ranks want one each (nproc_per_node: 3 in train.yaml fits)",
    )
    verdict = judge(CLUSTER, short, 100.0, {"n0": 3, "n1": 3})
    assert (verdict.faults, verdict.warnings) == ((), ("n1: 3 GPUs found, 4 promised",))
    assert (
        judge(CLUSTER, answers(gpus=[]), 100.0, {"n0": 4, "n1": 4}).faults == ()
    )  # a node without any trains on its CPUs


def test_a_taken_port_and_a_skewed_clock() -> None:
    asked = answers(unix=161.0)
    asked["n0"] |= {"port": 0, "port_error": "a port 29500: Address already in use"}
    verdict = judge(CLUSTER, asked, 100.0)
    assert verdict.faults == ("n0: the rendezvous cannot listen on a port 29500: Address already in use",)
    assert verdict.warnings == ("n1: its clock is off by +61 s",)
