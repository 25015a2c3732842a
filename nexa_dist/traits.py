"""Traits of each provider: the one table that code asks instead of a provider's name. A row costs no import.

What a provider does is in `ops/providers/`, by the same names (`ops/providers/contract.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EndsWith = Literal["power_off", "provider_limit", "api", ""]
"""End of a machine's bill with nobody home: its own power-off, a limit that the provider keeps, or nothing but a call
of the provider's API. Empty where nothing is rented, or where each cluster says it for itself."""


@dataclass(frozen=True)
class Traits:
    """Traits of one provider."""

    makes: bool = True
    """True when the provider makes the nodes and ends them; else they are the user's own, and are given back."""
    rents: bool = False
    """True when somebody sends a bill for the nodes."""
    replaces: bool = True
    """One lost node can be made anew."""
    root: bool = False
    """The nodes are ours to set up as root, without being asked for (`system_changes`)."""
    priced: bool = False
    """The cloud tells offers with prices that move, and when each machine was on."""
    network: bool = False
    """The nodes have a network that nobody else is in."""
    clock: bool = True
    """Each node has nexa's own clock: deadline, lease and idle time switch it off."""
    one_machine: bool = False
    """All nodes are this machine, which others use too."""
    users_ssh: bool = False
    """The user's own ssh settings reach the nodes, by the names that he gave them."""
    shared_home: bool = False
    """Nodes may share their home folder, and nobody can tell from here."""
    scheduled: bool = False
    """The nodes are one job of a scheduler's: set up by whoever runs that, given and taken together, and ended by the
    job's time limit."""
    by_job: bool = False
    """A scheduler's job leads the runs, and this machine sees all of their files: commands for a node's folder run
    here, and no nexa takes a run over."""
    ends_with: EndsWith = ""
    witness: str = ""
    """Witness that tells whether a machine is on, in words."""
    anew: str = "nexa teardown, then nexa provision"
    """Cure for a host key that is not the pinned one, as docs/RUNBOOK.md says it."""
    idle_keys: tuple[str, ...] = ()
    """Keys of cluster.yaml that are valid and that nothing acts on yet: said, rather than passed over."""
    idle_once_made: tuple[str, ...] = ()
    """The same once the cluster is provisioned."""


TRAITS: dict[str, Traits] = {
    "aws": Traits(
        rents=True, root=True, priced=True, network=True, ends_with="power_off", witness="the API",
        anew="nexa teardown gives the node back, and needs no login on it",
    ),
    "local": Traits(
        one_machine=True, witness="this machine's processes",
        idle_keys=("boot_timeout_s",), idle_once_made=("boot_timeout_s",),
    ),
    "static": Traits(
        makes=False, replaces=False, clock=False, users_ssh=True, shared_home=True,
        anew="if the host was made anew, put its new key into host_key of the cluster's file and provision again",
        idle_keys=("budget_usd", "max_hours", "mesh"), idle_once_made=("max_hours",),
    ),
    "stack": Traits(rents=True, clock=False, shared_home=True),
    "slurm": Traits(
        clock=False, shared_home=True, scheduled=True, ends_with="provider_limit", witness="Slurm",
        anew="nexa teardown gives the allocation back, and needs no login on it",
    ),
    "slurm_job": Traits(makes=False, replaces=False, clock=False, shared_home=True, by_job=True),
}  # fmt: skip
