from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.model import Cluster, Layout, Node, RdzvBackend
from nexa_dist.plan.ranks import RankPlan, assign_ranks
from nexa_dist.plan.runs.torchrun import Place, environment, program, torchrun

PLACE = Place("/env/bin/python", "/a/agent.pyz", "/s", "/sh", "/d", "/s/run1", "/sh/code/p", "/sh/code/c")


def plan(backend: RdzvBackend = "static") -> RankPlan:
    nodes = (Node("n0", "10.0.0.1", 2), Node("n1", "10.0.0.2", 2))
    return assign_ranks(Cluster("c", "local", nodes, Layout("", "", "", ""), rdzv_backend=backend), 29500)


def test_static_rendezvous_states_the_node_rank() -> None:
    config = TrainConfig(name="x", script="train.py", args=("--lr", "1e-3", "a b", "$(touch x)"))
    argv = torchrun(plan(), plan().nodes[1], PLACE, program(config, PLACE), "r", 1)
    assert argv == (
        "/env/bin/python", "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", "--max_restarts=0",
        "--log_dir=/s/run1/torchrun", "--rdzv_backend=static", "--node_rank=1",
        "--master_addr=10.0.0.1", "--master_port=29500",
        "--no_python", "/env/bin/python", "-S", "-E", "/a/agent.pyz", "rank", "--",
        "/env/bin/python", "-u", "train.py", "--lr", "1e-3", "a b", "$(touch x)",
    )  # fmt: skip


def test_c10d_gives_each_node_its_own_address() -> None:
    config = TrainConfig(name="x", module="pkg.mod")
    argv = torchrun(plan("c10d"), plan("c10d").nodes[1], PLACE, program(config, PLACE), "r", 3)
    assert "--rdzv_endpoint=10.0.0.1:29500" in argv
    assert "--rdzv_id=r-3" in argv
    assert "--local_addr=10.0.0.2" in argv
    assert argv[-3:] == ("-u", "-m", "pkg.mod")


def test_an_address_of_ipv6_stands_in_brackets_before_its_port() -> None:
    six = replace(plan("c10d"), rdzv_host="fd00::1")
    argv = torchrun(six, six.nodes[0], PLACE, program(TrainConfig(name="x", script="train.py"), PLACE), "r", 1)
    assert "--rdzv_endpoint=[fd00::1]:29500" in argv


def test_a_backend_prepares_its_data_once_per_node_before_the_ranks() -> None:
    raw = {
        "name": "x",
        "backend": "hf",
        "model": {"vocab_size": 512, "hidden_size": 64, "layers": 1, "heads": 4, "intermediate_size": 64},
        "dataset": {"source": "python-stdlib"},
        "trainer": {"steps": 1},
    }
    made = program(TrainConfig.model_validate(raw), PLACE)
    assert made.prepare == ("/env/bin/python", *made.argv, "--prepare")
    assert made.argv[-2:] == ("--config", "/s/run1/train.json")


def environ(torch: str = "2.13.0+cpu", **user: str) -> dict[str, str]:
    known: dict[str, Any] = {"run_id": "r", "attempt": 2, "interface": "eth1", "cpus": 8, "resume": ("/c", 40)}
    return environment(plan(), plan().nodes[1], PLACE, user=user, torch=torch, **known)


def test_environment_names_the_world_and_the_interface() -> None:
    made = environ()
    assert {k: made[k] for k in ("NEXA_WORLD_SIZE", "NEXA_NODE_RANK", "NEXA_FIRST_RANK", "NEXA_ATTEMPT")} == {
        "NEXA_WORLD_SIZE": "4", "NEXA_NODE_RANK": "1", "NEXA_FIRST_RANK": "2", "NEXA_ATTEMPT": "2",
    }  # fmt: skip
    assert made["GLOO_SOCKET_IFNAME"] == made["NCCL_SOCKET_IFNAME"] == "eth1"
    assert made["OMP_NUM_THREADS"] == "4"
    assert made["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert made["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
    assert (made["NEXA_RESUME_FROM"], made["NEXA_RESUME_STEP"]) == ("/c", "40")


@pytest.mark.parametrize(("name", "value"), [("OMP_NUM_THREADS", "1"), ("NCCL_DEBUG", "INFO")])
def test_the_users_values_win_over_defaults_but_not_over_the_plan(name: str, value: str) -> None:
    assert environ(**{name: value})[name] == value
    assert environ(NEXA_WORLD_SIZE="1")["NEXA_WORLD_SIZE"] == "4"


@pytest.mark.parametrize("name", ["TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE"])
def test_the_flight_recorder_is_on_and_either_name_turns_it_off(name: str) -> None:
    assert environ()["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    for torch in ("2.13.0+cpu", "2.5.1"):
        assert recorder(environ(torch, **{name: "0"})) == {name: "0"}


def recorder(made: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in made.items() if key.endswith("BUFFER_SIZE")}


@pytest.mark.parametrize(
    ("torch", "name"),
    [
        ("2.13.0+cpu", "TORCH_FR_BUFFER_SIZE"),
        ("2.9.0a0+git0fabc3b", "TORCH_FR_BUFFER_SIZE"),
        ("2.8.0+cu128", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
        ("2.2", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
        ("", "TORCH_FR_BUFFER_SIZE"),
    ],
)
def test_the_flight_recorder_has_the_one_name_that_the_nodes_torch_knows(torch: str, name: str) -> None:
    assert recorder(environ(torch)) == {name: "2000"}
