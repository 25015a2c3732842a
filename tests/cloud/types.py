"""What the API side of the emulated region and its hosts know of each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

HostState = Literal["booting", "up", "failed", "off"]
Facts = dict[str, float | int | None]
"""`pid` of a machine, and `up_s`: seconds from the order to boot until sshd listened. None: not yet."""


@dataclass(frozen=True)
class HostSpec:
    """One instance that the API started and that now has to boot."""

    instance_id: str
    region: str
    zone: str
    vpc_id: str
    type: str
    private_ip: str
    public_ip: str | None
    subnet_cidr: str
    user_data: bytes
    public_key: str
    """OpenSSH public key of the instance's key pair; empty without one."""
    spot: bool
    tags: dict[str, str]
    image: str = ""
    """What it boots from; one that was made of a machine has that machine's files."""
    boots: bool = True
    """False: the machine never comes up (a fault)."""


class Hosts(Protocol):
    """The machines behind the instances. Every call returns at once; what it began goes on by itself."""

    on_off: Callable[[str, str], None]
    """Called with (instance id, reason) when a machine ended by itself."""

    def boot(self, spec: HostSpec) -> None: ...

    def power_off(self, instance_id: str) -> None:
        """Ends the machine with all its processes. Unknown ids are passed over."""
        ...

    def partition(self, instance_id: str, cut: bool) -> None:
        """Takes the machine's network link down, or up again."""
        ...

    def capture(self, instance_id: str, image: str) -> None:
        """Keeps the machine's files as an image, when the call returns."""
        ...

    def notice(self, instance_id: str, at_unix: float | None) -> None:
        """Shows a spot interruption notice in the instance's metadata, or takes it back (None)."""
        ...

    def states(self) -> dict[str, HostState]:
        """State of every machine by instance id."""
        ...

    def facts(self) -> dict[str, Facts]:
        """Of every machine that is on, by instance id."""
        ...


class NoHosts:
    """Machines that are up at once and do nothing."""

    def __init__(self) -> None:
        self._states: dict[str, HostState] = {}
        self.on_off: Callable[[str, str], None] = lambda instance_id, reason: None

    def boot(self, spec: HostSpec) -> None:
        self._states[spec.instance_id] = "up" if spec.boots else "failed"

    def power_off(self, instance_id: str) -> None:
        self._states[instance_id] = "off"

    def partition(self, instance_id: str, cut: bool) -> None: ...

    def capture(self, instance_id: str, image: str) -> None: ...

    def notice(self, instance_id: str, at_unix: float | None) -> None: ...

    def states(self) -> dict[str, HostState]:
        return dict(self._states)

    def facts(self) -> dict[str, Facts]:
        return {}


@dataclass(frozen=True)
class Pace:
    """How long the states last, in seconds. AWS forgets a terminated instance after about an hour."""

    pending_s: float = 0.3
    shutting_down_s: float = 1.0
    forget_s: float = 600.0
    notice_s: float = 120.0
