"""The mesh of a cluster: who has which address, who calls whom where, and which network the ranks use."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.plan.ranks import endpoint, split_endpoint

DEFAULT_RANGE = "10.213.0.0/24"
INTERFACE = "nexa-wg0"
PORT = 51820
KEEPALIVE_S = 25
"""A firewall or NAT forgets a quiet UDP flow after 30 s at the earliest."""
OVERHEAD = 80
"""Bytes that WireGuard adds to a packet that travels over IPv6; 20 fewer over IPv4."""
USUAL_MTU = 1500
"""MTU of the way between two vendors, whatever a node's own network can take."""
FIRST = 101
"""Host number of the first node in a range that has so many: addresses of three digits sort as text too, and by
that torchrun's c10d rendezvous orders the nodes."""


@dataclass(frozen=True)
class Seat:
    """A node as it was found before the mesh."""

    name: str
    host: str
    """Address or name by which the controller reaches it."""
    private: str = ""
    """Address on a provider's network that it shares with the others."""
    jump: bool = False
    """Reached through another host, so nobody can call it from outside."""
    mtu: int = USUAL_MTU
    networks: tuple[str, ...] = ()
    """IPv4 networks of its interfaces, with prefix length."""

    @property
    def inside(self) -> bool:
        """Tell whether the seat has no address that all the world can call. A name is taken for a public one."""
        try:
            return self.jump or not ipaddress.ip_address(self.host).is_global
        except ValueError:
            return self.jump


def hostname(cluster: str, node: str, workspace: str) -> str:
    """Name of a node in the tailnet: no other cluster's node, of this workspace or another, has that name."""
    mark = hashlib.sha256(f"{workspace} {cluster}".encode()).hexdigest()[:6]
    return f"nexa-{cluster}"[:23].rstrip("-") + f"-{mark}-{node}"


def ranks_use_mesh(config: ClusterConfig) -> bool:
    """Tell whether the ranks talk over the mesh: between vendors there is no other way, and inside one VPC its own
    network is faster by far."""
    return config.mesh != "none" and not config.traits.network


def addresses(config: ClusterConfig) -> dict[str, str]:
    """Mesh address by node name, in node order. Raises UsageError when the range is too small."""
    network = ipaddress.IPv4Network(config.mesh_cidr or DEFAULT_RANGE)
    names = config.node_names
    last = network.num_addresses - 2
    if len(names) > last:
        raise UsageError(f"mesh_cidr {network} has no room for {len(names)} nodes", hint=f"use {DEFAULT_RANGE}")
    first = FIRST if FIRST + len(names) - 1 <= last else 1
    if config.vpc_cidr:
        _refuse_overlap(network, [("vpc_cidr", config.vpc_cidr)])
    return {name: str(network[first + index]) for index, name in enumerate(names)}


def over_mesh(cluster: Cluster, own: Mapping[str, str]) -> Cluster:
    """The cluster with its ranks on the mesh: peers and rendezvous have its addresses (`own`, by node name)."""
    nodes = tuple(replace(node, private_address=own[node.name]) for node in cluster.nodes)
    _, port = split_endpoint(cluster.rdzv)
    return replace(cluster, nodes=nodes, rdzv=endpoint(nodes[0], port or None))


def wireguard(config: ClusterConfig, seats: Sequence[Seat]) -> dict[str, Any]:
    """The playbook's variables for a wireguard mesh. Raises UsageError when the range is in use on a node."""
    network = ipaddress.IPv4Network(config.mesh_cidr or DEFAULT_RANGE)
    _refuse_overlap(network, [(seat.name, text) for seat in seats for text in (*seat.networks, seat.host)])
    own = addresses(config)
    links = {
        seat.name: {
            "address": f"{own[seat.name]}/{network.prefixlen}",
            "peers": [_peer(seat, other, own[other.name]) for other in seats if other.name != seat.name],
        }
        for seat in seats
    }
    return {"nexa_mesh": "wireguard", "nexa_mesh_links": links, "nexa_mesh_mtu": mtu(seats), "nexa_mesh_port": PORT}


def mtu(seats: Sequence[Seat]) -> int:
    """Bytes that fit into a packet of the narrowest node's network. The same on all nodes."""
    return min(USUAL_MTU, *(seat.mtu for seat in seats)) - OVERHEAD


def _peer(seat: Seat, other: Seat, address: str) -> dict[str, Any]:
    called = _call(other, seat)
    return {
        "name": other.name,
        "address": address,
        "endpoint": _call(seat, other),
        "keepalive_s": 0 if called else KEEPALIVE_S,
    }


def _call(here: Seat, there: Seat) -> str:
    """Endpoint `host:port` to which `here` sends for `there`; empty when it waits to be called. One of two always
    calls."""
    if here.private and there.private:
        host = there.private
    elif there.inside and not here.inside:
        return ""
    else:
        host = there.host
    return f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}"


def _refuse_overlap(network: ipaddress.IPv4Network, taken: Sequence[tuple[str, str]]) -> None:
    for what, other in taken:
        if any(network.overlaps(found) for found in _networks(other)):
            raise UsageError(
                f"the mesh's range {network} overlaps {other} of {what}",
                hint="set mesh_cidr to a private range that is free everywhere, such as 10.231.7.0/24",
            )


def _networks(text: str) -> Iterator[ipaddress.IPv4Network]:
    try:
        yield ipaddress.IPv4Network(text, strict=False)
    except ValueError:  # a name, or IPv6
        return
