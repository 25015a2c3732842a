"""Checks before a launch: what the nodes said, and whether it may go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexa_dist.model import Cluster

MIN_FREE_BYTES = 1 << 30
MAX_SKEW_S = 30.0


@dataclass(frozen=True)
class Verdict:
    """`faults` stop the launch; `warnings` are said. `interfaces` is the network interface by node name."""

    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    interfaces: Mapping[str, str]
    port: int


def judge(
    cluster: Cluster,
    answers: Mapping[str, Mapping[str, Any]],
    now_unix: float,
    ranks: Mapping[str, int] | None = None,
    pythons: Mapping[str, str] | None = None,
) -> Verdict:
    """`answers` are the agents' probes by node name; the first node's has the rendezvous port. `ranks`: how many each
    node gets (default: one for each GPU that it was promised with); `pythons`: where it is
    not the cluster's interpreter."""
    faults: list[str] = []
    warnings: list[str] = []
    interfaces: dict[str, str] = {}
    for node in cluster.nodes:
        answer, python = answers[node.name], (pythons or {}).get(node.name, cluster.layout.python)
        if answer.get("error"):
            faults.append(f"{node.name}: the interpreter {python} does not run: {answer['error']}")
        elif not answer.get("torch"):
            faults.append(f"{node.name}: torch is not installed for {python}")
        found, wanted = len(answer.get("gpus", [])), (ranks or {}).get(node.name, node.gpus)
        lack = f"{node.name}: {found} GPUs found, {node.gpus} promised"
        if 0 < found < wanted:
            faults.append(f"{lack}, and {wanted} ranks want one each (nproc_per_node: {found} in train.yaml fits)")
        elif 0 < found < node.gpus:
            warnings.append(lack)
        if answer["free_bytes"] < MIN_FREE_BYTES:
            faults.append(f"{node.name}: {answer['free_bytes'] >> 20} MiB free in scratch, 1 GiB is needed")
        skew_s = answer["unix"] - now_unix
        if abs(skew_s) > MAX_SKEW_S:
            warnings.append(f"{node.name}: its clock is off by {skew_s:+.0f} s")
        routes = answer.get("peers", {})
        faults += [f"{node.name}: no route to {peer}: {r['error']}" for peer, r in routes.items() if r.get("error")]
        names = {route["interface"] for route in routes.values() if route.get("interface")}
        interfaces[node.name] = names.pop() if len(names) == 1 else ""
    for what in ("torch", "python"):
        versions = {node.name: answers[node.name].get(what) for node in cluster.nodes}
        if what == "python":  # a patch release more or less is harmless
            versions = {name: str(v).rsplit(".", 1)[0] for name, v in versions.items()}
        if len(set(versions.values())) > 1:
            listed = ", ".join(f"{name} {version}" for name, version in versions.items())
            faults.append(f"{what} differs between nodes: {listed}")
    first = answers[cluster.nodes[0].name]
    if first.get("port_error"):
        faults.append(f"{cluster.nodes[0].name}: the rendezvous cannot listen on {first['port_error']}")
    return Verdict(tuple(faults), tuple(warnings), interfaces, int(first.get("port", 0)))
