"""`own.json` of a cluster of the user's own hosts: what was adopted, and what the hosts were like before we came.

Written before anything is done on a host, so that a provision that was killed can be undone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from nexa_dist.model import Cluster
from nexa_dist.plan.static.known_hosts import Adopted
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder, loaded
from nexa_dist.shape import of, record


@dataclass(frozen=True)
class Host:
    """One host. Until it is `claimed` nothing was done there; once `released` nothing is ours there any more."""

    adopted: Adopted
    user: str
    home: str = ""
    missing: tuple[str, ...] = ()
    """Folders that had to be made, the outermost first."""
    before: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Things with names of ours that were there already, by folder."""
    folders: dict[str, str] = field(default_factory=dict)
    claimed: bool = False
    released: bool = False
    given_up: bool = False
    """Gone for good, in the user's words: what was added there is left to it."""


@dataclass(frozen=True)
class Record:
    """All hosts by node name. `id` is the name of the cluster on the hosts, `cluster` its cluster.json as far as it is
    known, and `tmp` a folder on the hosts that lasts as long as a bootstrap."""

    id: str = ""
    hosts: dict[str, Host] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    tmp: str = ""
    envs: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    """Hashes of the environments and agents that were brought to the hosts."""
    python: str = "python3"
    system_changes: bool = False

    @classmethod
    def path(cls, folder: ClusterFolder) -> Path:
        return folder.path / "own.json"

    @classmethod
    def exists(cls, folder: ClusterFolder) -> bool:
        return cls.path(folder).exists()

    @classmethod
    def of(cls, folder: ClusterFolder) -> Self:
        """The record, empty if there is none. Raises NexaError when it is damaged."""
        if not cls.exists(folder):
            return cls()
        hint = "without it nobody knows what is ours on the hosts: bring it back, or clean them by hand"
        found = loaded(cls.path(folder), cls, hint)
        if found.cluster or found.claimed:
            files.read_shape(cls.path(folder), record({"cluster": of(Cluster)}), hint)
        return found

    def save(self, folder: ClusterFolder) -> None:
        files.write_json(self.path(folder), asdict(self), 0o600)

    def keys(self) -> dict[str, Adopted]:
        return {name: host.adopted for name, host in self.hosts.items()}

    @property
    def given_up(self) -> list[str]:
        return [name for name, host in self.hosts.items() if host.given_up]

    @property
    def claimed(self) -> dict[str, Host]:
        """Hosts on which something of ours may be."""
        return {
            name: host for name, host in self.hosts.items() if host.claimed and not (host.released or host.given_up)
        }
