"""Checks of the nodes, from what they and their wires said. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from nexa_dist.model import Cluster
from nexa_dist.plan.health import gpu_checks, slow_links
from nexa_dist.plan.health.expected import Expected
from nexa_dist.plan.health.fault import ALL, Fault, Severity, fail, odd_ones, warn

Facts = Mapping[str, Any]
"""Facts that the agent's `diag` tells of one node, and "skew_s" and "skew_error_s" by the controller's clock; or only
"error" where it could not be asked."""
GIB = 1 << 30
MIN_FREE_GIB, MIN_AVAILABLE_GIB, MIN_SHM_GIB = 5, 1, 1
WARN_SKEW_S, FAIL_SKEW_S = 2.0, 30.0
"""From 2 s on, logs and ledgers of nodes no longer fit together. By 30 s nothing sets that clock at all, and what a
node counts by it (its deadline, a lease, signed requests to the store) is going wrong."""
WARN_DISK, FAIL_DISK = 100.0, 20.0
"""MiB/s, written and synced: a plain gp3 disk has 125 MB/s; below 20 a checkpoint of 10 GB takes longer than the two
minutes of a spot notice many times over."""
MEMORY_PART = 0.85
"""Share of the memory that most nodes have: less means a module of memory that is gone."""
SURE_MIB = 32
"""MiB that have to be written before a disk is called broken (in nexa diag --deep): the first MiB say more about who
else is writing."""
MIN_NOFILE = 65536
PROVISION = "nexa provision sets it up again"


def judge(
    cluster: Cluster, facts: Mapping[str, Facts], expected: Mapping[str, Expected], test: Mapping[str, Any] | None
) -> list[Fault]:
    """Failures first, in the order of the nodes. `test` is what came of nexa_dist.remote.group_test: its result, or
    {"errors": {node: words}}; None when it was not run."""
    found: list[Fault] = []
    heard: dict[str, Facts] = {}
    for node in cluster.nodes:
        said = facts[node.name]
        if "error" in said:
            found.append(fail(node.name, "unreachable", said["error"], "an answer", "nexa status; nexa provision"))
            continue
        heard[node.name] = said
        found += _node(node.name, said, expected[node.name])
        found += gpu_checks.judge(node.name, said, expected[node.name])
    found += _together(heard)
    found += _clocks(heard)
    found += _wires(cluster, expected, test)
    order = {node.name: place for place, node in enumerate(cluster.nodes)}
    return sorted(found, key=lambda f: (f.severity != "fail", order.get(f.node, -1)))


def _node(name: str, said: Facts, want: Expected) -> Iterator[Fault]:
    """The node by itself, but for its GPUs."""
    environment, memory, disk = said["environment"], said["memory"], said["disk"]
    if environment.get("error"):
        yield fail(name, "environment", environment["error"], "an interpreter that runs", PROVISION)
    elif not environment.get("torch"):
        yield fail(name, "environment", "torch is not installed", "torch", PROVISION)
    for peer, route in said["peers"].items():
        if route.get("error"):
            yield fail(name, "route", f"no way to {peer}: {route['error']}", "a route", "check network and mesh")
    if said.get("port_error"):
        yield fail(name, "port", said["port_error"], "a free port for the rendezvous", "end what listens there")
    free = disk["free_bytes"]
    if free is not None and free < MIN_FREE_GIB * GIB:
        seen = f"{free / GIB:.1f} GiB free in scratch"
        yield fail(name, "disk full", seen, f"{MIN_FREE_GIB} GiB", "nexa ssh, and tidy up")
    elif disk.get("error"):
        yield fail(name, "disk", disk["error"], "a scratch that can be written", "nexa ssh, and look")
    else:
        yield from _disk_speed(name, disk, want)
    if memory["available"] / GIB < MIN_AVAILABLE_GIB:
        seen = f"{memory['available'] / GIB:.1f} GiB available"
        yield warn(name, "memory", seen, f"{MIN_AVAILABLE_GIB} GiB", "nexa ssh, and see who has it")
    if said["shm_bytes"] is None or said["shm_bytes"] < MIN_SHM_GIB * GIB:
        seen = f"{(said['shm_bytes'] or 0) >> 20} MiB in /dev/shm"
        yield warn(name, "shm", seen, f"{MIN_SHM_GIB} GiB, for data loaders and NCCL", "mount it larger")
    nofile, memlock = said["limits"]["nofile"], said["limits"]["memlock"]
    if want.efa and memlock is not None:
        yield fail(name, "memlock", f"{memlock >> 10} KiB", "no limit, since EFA pins memory", PROVISION)
    if want.own_machine and nofile is not None and nofile < MIN_NOFILE:
        yield warn(name, "limits", f"{nofile} open files at most", str(MIN_NOFILE), PROVISION)
    if want.own_machine and said["cpu_throttled"]:
        yield warn(name, "cpu throttled", "its CPUs are too hot", "full speed", "see to its cooling")


def _disk_speed(name: str, disk: Facts, want: Expected) -> Iterator[Fault]:
    speed, sure = disk["mib"] / max(disk["seconds"], 1e-6), disk["mib"] >= SURE_MIB
    if want.own_machine and speed < (WARN_DISK if sure else FAIL_DISK):
        worst: Severity = "fail" if sure and speed < FAIL_DISK else "warn"
        seen = f"scratch takes {speed:.0f} MiB/s"
        yield Fault(name, "disk slow", worst, seen, f"{WARN_DISK:.0f} MiB/s", "checkpoints take long; nexa provision")


def _together(heard: Mapping[str, Facts]) -> Iterator[Fault]:
    """Check what has to be the same on all nodes."""
    environments = {name: said["environment"] for name, said in heard.items() if not said["environment"].get("error")}
    for what in ("python", "torch", "cuda", "nccl", "transformers", "driver"):
        if what == "driver":
            versions = {name: said["module"] for name, said in heard.items()}
        else:
            versions = {name: said.get(what) for name, said in environments.items()}
        if what == "python":  # a patch release more or less is harmless
            versions = {name: str(version).rpartition(".")[0] for name, version in versions.items()}
        usual, odd = odd_ones({name: version for name, version in versions.items() if version})  # none: said above
        for name in odd:
            yield fail(name, "versions", f"{what} {versions[name]}", f"{usual}, as on the other nodes", PROVISION)
    memory = {name: said["memory"]["total"] / GIB for name, said in heard.items()}
    most = statistics.median(memory.values()) if memory else 0.0
    for name, gib in memory.items():
        if gib < MEMORY_PART * most:
            yield fail(name, "memory", f"{gib:.0f} GiB", f"{most:.0f} GiB, as the other nodes", "nexa provision")
    mtus = {
        name: tuple(sorted({route["mtu"] for route in said["peers"].values() if route.get("mtu")}))
        for name, said in heard.items()
    }
    usual, odd = odd_ones({name: mtu for name, mtu in mtus.items() if mtu})
    for name in odd:
        seen, want = (", ".join(map(str, mtu)) for mtu in (mtus[name], usual))
        yield warn(name, "mtu", f"MTU {seen}", f"{want}, as on the other nodes", "set it on its interface")


def _clocks(heard: Mapping[str, Facts]) -> Iterator[Fault]:
    off = {name: said["skew_s"] for name, said in heard.items() if "skew_s" in said}
    doubt = {name: heard[name].get("skew_error_s", 0.0) for name in off}
    late = {name for name, skew in off.items() if abs(skew) - doubt[name] > WARN_SKEW_S}
    if len(off) > 1 and late == set(off) and max(off.values()) - min(off.values()) < WARN_SKEW_S:
        seen = f"{-statistics.median(off.values()):+.1f} s from all nodes, which agree"
        yield warn("controller", "clock", seen, f"within {WARN_SKEW_S:.0f} s", "set this machine's clock")
        return
    for name in late:
        worst: Severity = "fail" if abs(off[name]) - doubt[name] > FAIL_SKEW_S else "warn"
        seen = f"{off[name]:+.1f} s off"
        yield Fault(name, "clock", worst, seen, f"within {WARN_SKEW_S:.0f} s", "start chrony or timesyncd there")


def _wires(cluster: Cluster, expected: Mapping[str, Expected], test: Mapping[str, Any] | None) -> Iterator[Fault]:
    if test is None:
        return
    for name, words in test.get("errors", {}).items():
        yield fail(name, "group test", words, "an all-reduce with the other nodes", "nexa diag again; then its network")
    wants = [expected[node.name] for node in cluster.nodes]
    worst: Severity = "fail" if all(want.own_machine for want in wants) else "warn"
    names = [node.name for node in cluster.nodes]
    tables, floor = (test.get("matrix") or [], test.get("at_most") or []), min(want.floor_gbps for want in wants)
    found = slow_links.slow(names, tables[0], floor, tables[1])
    if not found and (busy := slow_links.slow(names, tables[0], floor)):
        seen = f"{busy[0].gbps:.3g} Gbit/s, and its processes waited for a CPU"
        want = f"about {max(busy[0].usual_gbps, floor):.3g} Gbit/s"
        yield warn(busy[0].node, "busy", seen, want, "see what else runs there, then nexa diag again")
    if len(names) > 2 and 2 * sum(not slow.peer for slow in found) > len(names):
        best = max(slow.gbps for slow in found)
        seen = f"at most {best:.3g} Gbit/s between most nodes"
        yield fail(ALL, "slow network", seen, f"{wants[0].floor_gbps:.3g} Gbit/s", "check placement and zone")
        return
    for slow in found:
        usual = max(slow.usual_gbps, wants[0].floor_gbps)
        want_words = f"about {usual:.3g} Gbit/s" + ("" if slow.peer else ", as between the others")
        if slow.peer:
            seen = f"{slow.node} to {slow.peer}: {slow.gbps:.3g} Gbit/s"
            yield Fault(slow.node, "slow link", worst, seen, want_words, "nexa diag --deep measures it longer")
        else:
            seen = f"its links have {slow.gbps:.3g} Gbit/s at best"
            yield Fault(slow.node, "slow node", worst, seen, want_words, "nexa provision puts another in its place")
    yield from _as_the_type(expected, test)


def _as_the_type(expected: Mapping[str, Expected], test: Mapping[str, Any]) -> Iterator[Fault]:
    """NCCL's figures against what the type has; gloo's say nothing about the network that NCCL uses."""
    if test.get("backend") != "nccl":
        return
    listed = min(want.network_gbps for want in expected.values())
    gbps = test["busbw_gb_s"] * 8
    if gbps < 0.5 * listed:
        seen = f"all-reduce has {gbps:.0f} Gbit/s of bus bandwidth"
        yield warn(
            ALL, "slow network", seen, f"half of {listed:.0f} Gbit/s at least", "efa: true, where the type has it"
        )
    if min(want.efa for want in expected.values()) and test.get("transport") == "Socket":
        yield fail(ALL, "efa", "NCCL uses sockets", "EFA through libfabric", PROVISION)
