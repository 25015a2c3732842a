"""The nouns that every layer shares. Frozen values; units are in the names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from nexa_dist.shape import number, whole
from nexa_dist.traits import TRAITS, EndsWith, Traits

Provider = Literal["aws", "local", "static", "stack", "slurm"]
"""Providers of cluster.yaml."""
RdzvBackend = Literal["static", "c10d"]
Market = Literal["spot", "on_demand"]
Kind = Literal[
    "completed", "stopped", "deadline", "budget", "disconnected",
    "config", "prepare", "start", "rank", "killed", "oom", "launcher", "agent", "hang",
    "node", "notice",
]  # fmt: skip
Action = Literal["done", "stop", "restart", "replace", "shrink", "wait"]
ACTIVE = ("starting", "running")
"""States of an attempt that has not been closed."""
GOES_ON: tuple[Action, ...] = ("restart", "replace", "shrink", "wait")
"""Decisions after which a run goes on."""
Unix = Annotated[float, number(0, 4.2e9)]
Count = Annotated[int, whole()]


@dataclass(frozen=True)
class Node:
    """One machine of a cluster, as it is reached. `gpus` is the number of ranks it takes."""

    name: str
    address: str
    gpus: int
    port: int = 22
    user: str = ""
    price_usd_per_hour: float = 0.0
    private_address: str = ""
    """Address at which the other nodes reach this one, when the controller uses another."""
    instance_id: str = ""
    offer: str = ""
    """Offer that was rented: instance type, zone, market."""

    @property
    def peer_address(self) -> str:
        """Address on the network that joins the nodes."""
        return self.private_address or self.address


@dataclass(frozen=True)
class Layout:
    """Folders of a node. All are absolute, or start with `~/` (the node's home)."""

    python: str
    """Interpreter of the training environment."""
    scratch: str
    """`$NEXA_SCRATCH`: fast, lost with the node."""
    shared: str
    """`$NEXA_SHARED`: caches (environments, prepared data, code archives)."""
    durable: str
    """`$NEXA_DURABLE`: what outlives the node; only rank 0 writes to it."""


@dataclass(frozen=True)
class Cluster:
    """`cluster.json`: what `nexa run` needs to know of a cluster. Node order is rank order."""

    name: str
    provider: Literal["aws", "local", "static", "stack", "slurm", "slurm_job"]
    """slurm_job: the nodes of a job of `nexa slurm submit`, which no cluster.yaml names."""
    nodes: tuple[Node, ...]
    layout: Layout
    ssh_config: str = ""
    """ssh_config file to use; empty means the user's own."""
    rdzv: str = ""
    """`host:port` of the rendezvous, empty to choose a free port on the first node."""
    rdzv_backend: RdzvBackend = "static"
    env_hash: str = ""
    created_unix: float = 0.0
    bucket: str = ""
    """`s3://bucket/prefix` that outlives the nodes; empty when there is none."""
    region: str = ""
    """Region of the cloud; empty for hosts that are in none."""
    ends_with: EndsWith = ""
    """End of the machines' bill with nobody home, where the user's own stack says it."""

    @property
    def traits(self) -> Traits:
        return TRAITS[self.provider]

    @property
    def world_size(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def usd_per_hour(self) -> float:
        return sum(node.price_usd_per_hour for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cluster:
        nodes = tuple(Node(**node) for node in data["nodes"])
        return cls(**{**data, "nodes": nodes, "layout": Layout(**data["layout"])})


@dataclass(frozen=True)
class End:
    """End of an attempt. `rank` is -1 when no rank failed by itself; steps are None when none was reported."""

    kind: Kind = "rank"
    words: str = ""
    node: str = ""
    rank: int = -1
    first_step: Count | None = None
    """Step of the checkpoint it went on from."""
    last_step: Count | None = None
    """Highest step that a rank reported."""
    started_unix: Unix = 0.0
    ended_unix: Unix = 0.0


@dataclass(frozen=True)
class Decision:
    """`nodes`: those to replace, or those that go on. `after_s`: pause before it."""

    action: Action
    why: str = ""
    nodes: tuple[str, ...] = ()
    after_s: float = 0.0


def absolute(path: str, home: str) -> str:
    """A path of a Layout on a node: `~/x` below that node's `home`, anything else as it is."""
    return f"{home}/{path[2:]}" if path.startswith("~/") else path
