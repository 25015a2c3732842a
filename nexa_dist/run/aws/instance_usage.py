"""Usage of an instance for the bill, from the cloud's description of it: when it was launched, and when it left
`running`."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nexa_dist.run.aws.client import Cloud
from nexa_dist.run.aws.tagged import NODE, TaggedResource

ON = ("pending", "running")
_ENDED = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


@dataclass(frozen=True)
class InstanceUsage:
    """One instance. `stop_unix` is None while it is on, and where the cloud does not tell."""

    id: str
    node: str
    offer: str
    region: str
    start_unix: float
    on: bool
    stop_unix: float | None
    why: str
    spot_request: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Type, zone, market."""
        kind, zone, market = self.offer.split()
        return kind, zone, market


def machines(things: Sequence[TaggedResource]) -> list[InstanceUsage]:
    """Usage of the instances among the things. An instance that is off without a time of its end is looked up by its
    spot request."""
    found = [_machine(thing) for thing in things if thing.kind == "instance" and thing.since_unix is not None]
    ends: dict[str, float] = {}
    for region in sorted({machine.region for machine in found if _unknown(machine)}):
        asked = [m.spot_request for m in found if _unknown(m) and m.region == region]
        ends |= Cloud(region).spot_ends(asked)
    return [replace(m, stop_unix=ends.get(m.spot_request)) if _unknown(m) else m for m in found]


def _unknown(machine: InstanceUsage) -> bool:
    return not machine.on and machine.stop_unix is None and bool(machine.spot_request)


def _machine(thing: TaggedResource) -> InstanceUsage:
    told = _ENDED.search(thing.row.get("StateTransitionReason") or "")
    ended = datetime.datetime.fromisoformat(f"{told[1]}+00:00").timestamp() if told else None
    on = thing.state in ON
    return InstanceUsage(
        id=thing.id,
        node=thing.tags.get(NODE, "?"),
        offer=thing.offer,
        region=thing.region,
        start_unix=thing.since_unix or 0.0,
        on=on,
        stop_unix=None if on else ended,
        why="" if on else str((thing.row.get("StateReason") or {}).get("Code") or thing.state),
        spot_request=str(thing.row.get("SpotInstanceRequestId") or ""),
    )
