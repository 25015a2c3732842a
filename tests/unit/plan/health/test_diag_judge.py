"""What is wrong with the nodes, from what they said: each fault names its node and its cause."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan.health.expected import Expected, expected
from nexa_dist.plan.health.fault import Fault, replaceable
from nexa_dist.plan.health.node_checks import judge

Change = Callable[[dict[str, Any]], object]
GIB = 1 << 30
GPU = {
    "index": 0, "name": "A10G", "driver": "580.95.05", "memory_mib": 23028, "bus": "00:1b.0", "celsius": 30,
    "ecc_uncorrected": 0, "clock_reasons": 1,
}  # fmt: skip
GOOD: dict[str, Any] = {
    "environment": {"python": "3.11.2", "torch": "2.13.0+cu130", "cuda": "13.0", "nccl": "2.28.9", "numpy": "2.4"},
    "memory": {"total": 512 * GIB, "available": 500 * GIB},
    "shm_bytes": 90 * GIB,
    "limits": {"nofile": 1048576, "memlock": None},
    "disk": {"free_bytes": 400 * GIB, "mib": 64, "seconds": 0.3},
    "cpu_throttled": 0,
    "module": "580.95.05",
    "pci_gpus": 8,
    "smi_code": 0,
    "smi_error": "",
    "gpus": [{**GPU, "index": index} for index in range(8)],
    "nvlink": {str(index): {"active": 12, "inactive": 0} for index in range(8)},
    "nvswitches": 6,
    "fabric_manager": {"version": "580.95.05", "state": "active"},
    "xid": [],
    "efa": {"devices": 4, "domains": 4},
    "skew_s": 0.001,
    "skew_error_s": 0.002,
}


def aws(count: int = 3) -> Cluster:
    nodes = tuple(
        Node(f"n{i}", f"203.0.113.{i}", 8, private_address=f"10.0.0.{i}", instance_id=f"i-{i}",
             offer="p4d.24xlarge us-east-1a spot")
        for i in range(count)
    )  # fmt: skip
    return Cluster("c", "aws", nodes, Layout("py", "/s", "/h", "/d"))


def facts(cluster: Cluster, **changes: Change) -> dict[str, dict[str, Any]]:
    found = {}
    for node in cluster.nodes:
        said = copy.deepcopy(GOOD)
        route = {"address": node.private_address, "interface": "ens32", "mtu": 9001}
        said["peers"] = {n.private_address: dict(route) for n in cluster.nodes if n.name != node.name}
        if node.name in changes:
            changes[node.name](said)
        found[node.name] = said
    return found


def judged(cluster: Cluster, said: dict[str, dict[str, Any]], test: dict[str, Any] | None = None) -> list[Fault]:
    return judge(cluster, said, {node.name: expected(cluster, node, efa=True) for node in cluster.nodes}, test)


def put(*path: str | int, to: Any) -> Change:
    def change(said: dict[str, Any]) -> None:
        where: Any = said
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = to

    return change


def no_gpu(said: dict[str, Any]) -> None:
    said.update(gpus=[], pci_gpus=0, smi_code=127, module=None, nvlink={}, nvswitches=0, fabric_manager=None, xid=None)


def test_good_nodes_have_no_finding() -> None:
    assert judged(aws(), facts(aws())) == []


XID = "[  9.1] NVRM: Xid (PCI:0000:00:1b): {}, pid=812, name=python, and more words"
FAULTS: dict[str, tuple[Change, str, str, str]] = {
    "a GPU is missing": (lambda s: s["gpus"].pop(), "gpu missing", "fail", "7 GPUs; 8 on the bus"),
    "no GPU at all": (no_gpu, "gpu missing", "fail", "0 GPUs"),
    "driver and library differ": (
        lambda s: s.update(smi_code=18, smi_error="Driver/library version mismatch", gpus=[]),
        "driver", "fail", "nvidia-smi: Driver/library version mismatch",
    ),
    "driver and module differ": (
        lambda s: [gpu.update(driver="580.105.08") for gpu in s["gpus"]],
        "driver", "fail", "driver 580.105.08, kernel module 580.95.05",
    ),
    "fabric manager of another patch": (
        put("fabric_manager", "version", to="580.82.07"),
        "fabric manager", "fail", "fabric manager 580.82.07, driver 580.95.05",
    ),
    "fabric manager is off": (
        put("fabric_manager", "state", to="failed"), "fabric manager", "fail", "its service is failed",
    ),
    "ECC": (put("gpus", 3, "ecc_uncorrected", to=2), "ecc", "fail", "GPU 3: 2 uncorrected errors"),
    "fallen off the bus": (put("xid", to=[XID.format(79)]), "xid", "fail", "Xid 79: fallen off the bus"),
    "an Xid that nobody knows": (put("xid", to=[XID.format(999)]), "xid", "warn", "Xid 999"),
    "the log cannot be read": (put("xid", to=None), "xid", "warn", "the kernel's log cannot be read"),
    "too hot": (
        put("gpus", 1, "clock_reasons", to=0x40), "throttled", "fail", "GPU 1: hardware thermal slowdown at 30 °C",
    ),
    "warm": (
        put("gpus", 1, "clock_reasons", to=0x21), "throttled", "warn", "GPU 1: software thermal slowdown at 30 °C",
    ),
    "a link is down": (
        put("nvlink", "5", to={"active": 11, "inactive": 1}), "nvlink", "fail", "GPU 5: 11 links are active",
    ),
    "EFA is missing": (put("efa", "devices", to=3), "efa", "fail", "3 EFA devices"),
    "no libfabric": (put("efa", "domains", to=None), "efa", "fail", "fi_info is not there"),
    "memory cannot be pinned": (put("limits", "memlock", to=8 << 20), "memlock", "fail", "8192 KiB"),
    "torch for CPUs": (
        lambda s: s["environment"].update(cuda=None), "environment", "fail", "torch 2.13.0+cu130 cannot use GPUs",
    ),
    "no torch": (put("environment", "torch", to=None), "environment", "fail", "torch is not installed"),
    "another torch": (put("environment", "torch", to="2.12.1"), "versions", "fail", "torch 2.12.1"),
    "another NCCL": (put("environment", "nccl", to="2.27.3"), "versions", "fail", "nccl 2.27.3"),
    "another Python": (put("environment", "python", to="3.12.1"), "versions", "fail", "python 3.12"),
    "a full disk": (put("disk", "free_bytes", to=GIB), "disk full", "fail", "1.0 GiB free in scratch"),
    "a disk that cannot be written": (
        put("disk", to={"free_bytes": 9 * GIB, "error": "Read-only file system"}),
        "disk", "fail", "Read-only file system",
    ),
    "a slow disk": (put("disk", "seconds", to=10.0), "disk slow", "fail", "scratch takes 6 MiB/s"),
    "a disk that is slow for a moment": (
        put("disk", to={"free_bytes": 9 * GIB, "mib": 8, "seconds": 2.0}), "disk slow", "warn", "scratch takes 4 MiB/s",
    ),
    "memory is gone": (put("memory", "total", to=384 * GIB), "memory", "fail", "384 GiB"),
    "memory is taken": (put("memory", "available", to=GIB // 2), "memory", "warn", "0.5 GiB available"),
    "small /dev/shm": (put("shm_bytes", to=64 << 20), "shm", "warn", "64 MiB in /dev/shm"),
    "another MTU": (
        lambda s: [route.update(mtu=1500) for route in s["peers"].values()], "mtu", "warn", "MTU 1500",
    ),
    "no route": (
        lambda s: s["peers"].update({"10.0.0.0": {"error": "Network is unreachable"}}),
        "route", "fail", "no way to 10.0.0.0: Network is unreachable",
    ),
    "a clock that is off": (put("skew_s", to=-61.0), "clock", "fail", "-61.0 s off"),
    "a clock that is a bit off": (put("skew_s", to=3.0), "clock", "warn", "+3.0 s off"),
    "few files": (put("limits", "nofile", to=4096), "limits", "warn", "4096 open files at most"),
    "hot CPUs": (put("cpu_throttled", to=3), "cpu throttled", "warn", "its CPUs are too hot"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_names_its_node_and_its_cause(name: str) -> None:
    change, cause, severity, seen = FAULTS[name]
    found = [(f.node, f.cause, f.severity, f.seen) for f in judged(aws(), facts(aws(), n1=change))]
    assert found == [("n1", cause, severity, seen)]


def test_what_every_program_may_cause_is_no_fault_of_a_gpu() -> None:
    assert judged(aws(), facts(aws(), n1=put("xid", to=[XID.format(code) for code in (13, 31, 43, 45)]))) == []


def test_a_doubtful_clock_is_given_the_benefit() -> None:
    def change(said: dict[str, Any]) -> None:
        said.update(skew_s=2.5, skew_error_s=1.0)

    assert judged(aws(), facts(aws(), n1=change)) == []


def test_when_all_nodes_agree_it_is_this_machines_clock() -> None:
    late = put("skew_s", to=40.0)
    found = judged(aws(), facts(aws(), n0=late, n1=late, n2=late))
    assert [(f.node, f.cause, f.severity) for f in found] == [("controller", "clock", "warn")]
    assert "-40.0 s from all nodes" in found[0].seen


def test_hosts_without_gpus_are_fine_and_with_too_few_not() -> None:
    nodes = (Node("n0", "a", 4), Node("n1", "b", 4))
    own = Cluster("c", "static", nodes, Layout("py", "~/s", "~/h", "~/d"))
    cpu = facts(own, n0=no_gpu, n1=no_gpu)
    assert judged(own, cpu) == []
    some = facts(own, n1=lambda said: said.update(gpus=said["gpus"][:3], nvlink={}))
    assert [(f.node, f.cause, f.expected) for f in judged(own, some)] == [("n1", "gpu missing", "4 GPUs")]


def test_a_silent_node_is_named_and_the_others_are_still_judged() -> None:
    said = facts(aws(), n2=put("disk", "free_bytes", to=0))
    said["n0"] = {"error": "ssh: no route"}
    assert [(f.node, f.cause) for f in judged(aws(), said)] == [("n0", "unreachable"), ("n2", "disk full")]


def matrix(gbps: float, count: int = 3, **slow: float) -> list[list[float | None]]:
    made: list[list[float | None]] = [[None if r == c else gbps for c in range(count)] for r in range(count)]
    for ends, value in slow.items():
        made[int(ends[1])][int(ends[2])] = value
    return made


GLOO: dict[str, Any] = {"backend": "gloo", "busbw_gb_s": 1.0}


def test_a_slow_link_and_a_slow_node_are_named() -> None:
    link = judged(aws(), facts(aws()), {**GLOO, "matrix": matrix(9.0, l01=2.0)})
    assert [(f.node, f.cause, f.seen) for f in link] == [("n0", "slow link", "n0 to n1: 2 Gbit/s")]
    node = judged(aws(), facts(aws()), {**GLOO, "matrix": matrix(9.0, l01=2.0, l21=2.1)})
    assert [(f.node, f.cause, f.severity) for f in node] == [("n1", "slow node", "fail")]
    assert replaceable(node) == {"n1": ["slow node"]}


def test_a_link_that_had_no_cpu_is_only_warned_of() -> None:
    test = {**GLOO, "matrix": matrix(9.0, l01=2.0), "at_most": matrix(12.0)}
    found = judged(aws(), facts(aws()), test)
    assert [(f.node, f.cause, f.severity) for f in found] == [("n0", "busy", "warn")]
    assert found[0].seen == "2 Gbit/s, and its processes waited for a CPU"


def test_nodes_that_are_one_machine_are_only_warned_of() -> None:
    nodes = (Node("n0", "127.0.0.2", 1), Node("n1", "127.0.0.3", 1))
    local = Cluster("c", "local", nodes, Layout("py", "/s", "/h", "/d"))
    said = facts(local, n0=no_gpu, n1=no_gpu)
    found = judged(local, said, {**GLOO, "matrix": matrix(30.0, 2, l10=9.0)})
    assert [(f.node, f.cause, f.severity) for f in found] == [("n1", "slow link", "warn")]


def test_where_every_link_is_slow_no_node_is_to_blame() -> None:
    found = judged(aws(), facts(aws()), {**GLOO, "matrix": matrix(0.1)})
    assert [(f.node, f.cause, f.severity) for f in found] == [("all", "slow network", "fail")]
    assert replaceable(found) == {}


def test_nccl_is_held_against_what_the_type_has() -> None:
    test = {"backend": "nccl", "busbw_gb_s": 9.0, "matrix": matrix(80.0), "transport": "Socket"}
    found = judged(aws(), facts(aws()), test)
    assert [(f.node, f.cause, f.severity) for f in found] == [("all", "efa", "fail"), ("all", "slow network", "warn")]
    good = {"backend": "nccl", "busbw_gb_s": 42.0, "matrix": matrix(300.0), "transport": "AWS Libfabric"}
    assert judged(aws(), facts(aws()), good) == []


def test_a_test_that_failed_names_who_kept_the_others_waiting() -> None:
    found = judged(aws(), facts(aws()), {"errors": {"n2": "connection refused"}})
    assert [(f.node, f.cause, f.seen) for f in found] == [("n2", "group test", "connection refused")]


def test_what_is_promised_comes_from_the_price_book() -> None:
    want = expected(aws(), aws().nodes[0], efa=True)
    assert (want.gpus, want.efa, want.network_gbps) == (8, 4, 400)
    assert expected(aws(), aws().nodes[0]).efa == 0
    assert expected(Cluster("c", "local", (), Layout("", "", "", "")), Node("n0", "a", 2)) == Expected(
        ranks=2, own_machine=False
    )
