"""The life of every instance: pending, running, shutting down, terminated, forgotten; and its machine with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from moto.ec2.models.instances import Instance, InstanceState, StateReason

from tests.cloud.faults import Refused
from tests.cloud.moto_prices import BillLine
from tests.cloud.moto_spot import SpotRecord
from tests.cloud.types import Hosts, HostSpec, Pace

BY_USER = ("Client.UserInitiatedShutdown", "User initiated shutdown")
BY_ITSELF = ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
BY_SPOT = ("Server.SpotInstanceTermination", "Spot instance termination")
CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}


@dataclass
class Machine:
    """An instance with what moto does not know of it."""

    instance: Instance
    spec: HostSpec
    line: BillLine
    spot: SpotRecord | None
    since: float
    dead: bool = False
    reclaim_at: float | None = None


def put_state(instance: Instance, name: str) -> InstanceState:
    """Returns the state that was."""
    before = instance._state
    instance._state = InstanceState(name, CODES[name])
    return before


@dataclass
class Life:
    """All instances of all regions. Every method but `powered_off` is called with `lock` held."""

    hosts: Hosts
    pace: Pace
    finish: Callable[[Instance], InstanceState]
    """moto's own terminate, which frees volumes and network interfaces."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    machines: dict[str, Machine] = field(default_factory=dict)
    lines: list[BillLine] = field(default_factory=list)

    def begin(self, instance: Instance, spec: HostSpec, spot: SpotRecord | None) -> None:
        now = time.time()
        market = "spot" if spec.spot else "on_demand"
        line = BillLine(instance.id, spec.type, spec.zone, market, spec.tags)
        line.starts(now)
        self.lines.append(line)
        self.machines[instance.id] = Machine(instance, spec, line, spot, now)
        put_state(instance, "pending")
        self.hosts.boot(spec)

    def settle(self) -> None:
        """Moves every state whose time has come."""
        now = time.time()
        for machine in list(self.machines.values()):
            state, age = machine.instance.state, now - machine.since
            if state == "pending" and age >= self.pace.pending_s:
                put_state(machine.instance, "running")
            elif state == "shutting-down" and age >= self.pace.shutting_down_s:
                self._bury(machine)
            elif state == "terminated" and age >= self.pace.forget_s:
                self._forget(machine)
            elif state in ("pending", "running") and machine.reclaim_at is not None and now >= machine.reclaim_at:
                self.terminate(machine.instance, BY_SPOT)

    def terminate(self, instance: Instance, why: tuple[str, str] = BY_USER) -> InstanceState:
        """As often as one likes. Returns the state that was."""
        machine = self.machines.get(instance.id)
        if instance.state in ("shutting-down", "terminated"):
            return instance._state
        if machine is None:
            return self.finish(instance)
        self._power_off(machine)
        before = put_state(instance, "shutting-down")
        instance._reason = f"{why[1]} ({time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} GMT)"
        instance.state_reason = StateReason(f"{why[0]}: {why[1]}", why[0])
        if machine.spot:
            machine.spot.ends(why[0])
        return before

    def stop(self, instance: Instance, halt: Callable[[Instance], InstanceState]) -> InstanceState:
        """`halt` is moto's own stop. A one-time spot instance cannot be stopped."""
        machine = self.machines[instance.id]
        if machine.spot:
            told = f"You can't stop the Spot Instance '{instance.id}' because it is associated with a one-time request."
            raise Refused("UnsupportedOperation", told)
        self._power_off(machine)
        return halt(instance)

    def start(self, instance: Instance, resume: Callable[[Instance], InstanceState]) -> InstanceState:
        machine = self.machines[instance.id]
        before = resume(instance)
        if before.name == "stopped":
            machine.since, machine.dead = time.time(), False
            machine.line.starts(machine.since)
            put_state(instance, "pending")
            self.hosts.boot(machine.spec)
        return before

    def powered_off(self, instance_id: str, reason: str) -> None:
        """A machine ended by itself: its instance does what its shutdown behaviour says."""
        with self.lock:
            machine = self.machines.get(instance_id)
            if machine is None or machine.dead or machine.instance.state not in ("pending", "running"):
                return
            if machine.spot or machine.instance.instance_initiated_shutdown_behavior == "terminate":
                self.terminate(machine.instance, BY_ITSELF)
                return
            machine.line.stops(time.time())
            machine.instance.stop()
            machine.instance.state_reason = StateReason(f"{BY_ITSELF[0]}: {BY_ITSELF[1]} {reason}", BY_ITSELF[0])

    def notice(self, machine: Machine, seconds: float | None, reclaim: bool) -> None:
        """Announces the end of a spot instance, and (unless told otherwise) ends it then."""
        at = time.time() + (self.pace.notice_s if seconds is None else seconds)
        self.hosts.notice(machine.instance.id, at)
        machine.reclaim_at = at if reclaim else None
        if machine.spot:
            machine.spot.tell("marked-for-termination", "Your Spot Instance is marked for termination.")

    def fail(self, machine: Machine) -> None:
        """The machine dies; the cloud does not notice, and bills on."""
        machine.dead = True
        self.hosts.power_off(machine.instance.id)

    def _power_off(self, machine: Machine) -> None:
        machine.since = time.time()
        machine.reclaim_at = None
        machine.line.stops(machine.since)
        self.hosts.power_off(machine.instance.id)

    def _bury(self, machine: Machine) -> None:
        instance = machine.instance
        told, why = instance._reason, instance.state_reason
        for address in instance.ec2_backend.addresses:
            if address.eni in instance.nics.values() or address.instance is instance:
                address.eni = address.instance = address.association_id = None
        self.finish(instance)
        instance._reason, instance.state_reason = told, why
        machine.since = time.time()

    def _forget(self, machine: Machine) -> None:
        ec2 = machine.instance.ec2_backend
        for key, reservation in list(ec2.reservations.items()):
            reservation.instances = [i for i in reservation.instances if i is not machine.instance]
            if not reservation.instances:
                del ec2.reservations[key]
        if machine.spot:
            ec2.spot_instance_requests.pop(machine.spot.id, None)
            ec2.tags.pop(machine.spot.id, None)
        ec2.tags.pop(machine.instance.id, None)
        del self.machines[machine.instance.id]
