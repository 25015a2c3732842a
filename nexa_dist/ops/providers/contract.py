"""Provider contract: a provider is a module with these functions. Its traits stand in nexa_dist/traits.py.

`table.provider_of` finds it by name; to add one, write the module, its row of traits and the keys of its cluster.yaml
(docs/CONTRIBUTING.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.plan.health.lost import CloudWord
from nexa_dist.run.terraform.stack import Terraform
from nexa_dist.run.workspace import ClusterFolder


@dataclass(frozen=True)
class Wish:
    """Wishes to `make` beside the cluster's file."""

    hours: Callable[[float], float] = lambda _: math.inf
    """Hours that nodes may live which cost so many USD an hour in all; raises NexaError without budget."""
    begin: Callable[[], None] = lambda: None
    """Callback before the first thing is made: writes down that a cluster may exist from here on."""
    lost: Sequence[str] = ()
    """Nodes to be ended, and made anew."""
    saved: Any = None
    """A saved plan to be applied as it is; of a provider that saves plans."""
    offers: Sequence[Any] = ()
    """Offers that may be rented, in order of preference, where that was asked already."""
    adopted: Sequence[Any] = ()
    """Host keys of the user's own hosts, in node order."""


@dataclass(frozen=True)
class Made:
    """The nodes as they answer by their pinned keys; homes by node name; Ansible's variables for all and by node."""

    cluster: Cluster
    homes: dict[str, str]
    variables: dict[str, Any]
    each: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """Terraform's plan as JSON (or one of its shape), and who made it. `report` is for `nexa plan --json`, `lines` for
    people."""

    terraform: Terraform | None
    told: dict[str, Any]
    violations: Sequence[Any] = ()
    """Violations of our own policies."""
    saves: Any = None
    """Data that a saved plan needs beside Terraform's own; None where none is saved."""
    report: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    alarm: str = ""
    """Warning that nobody may overlook."""


class Provider(Protocol):
    """Every function may be called again after any interruption, and goes on from there."""

    def make(self, ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Made:
        """Makes the nodes that are missing, and those that are lost anew. Raises NexaError."""

    def destroy(self, ctx: Context, folder: ClusterFolder, scope: Any = None) -> dict[str, Any]:
        """Ends all that was made (gives back what was not). Answers the receipt's rows; `left` in it is what is not
        proven gone. `scope`: where it was made, when the folder does not say."""

    def proof(self, receipt: Mapping[str, Any]) -> str:
        """Words for what a receipt proves."""

    def says(self, ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
        """State of a node's machine by the word of its maker, and in words; ("", "") when that is nobody. Raises
        NexaError when it cannot be asked: it has not said then that the node is dead."""

    def usage(self, ctx: Context, folder: ClusterFolder) -> float:
        """Writes to the ledger what the provider tells of machines that were on. Answers until when that holds, in
        unix seconds of the clock that is billed by. Raises NexaError when it does not answer."""

    def plan(self, ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Planned:
        """Terraform's plan; nothing is changed. Raises UsageError where there is nothing to plan."""
