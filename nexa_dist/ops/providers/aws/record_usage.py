"""Recording of usage from the cloud's own word: a cluster's instances and prices, added to the ledger."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.ops.context import Context
from nexa_dist.ops.ledger_file import open_periods, read, stop
from nexa_dist.plan.aws import prices
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.plan.money import ledger
from nexa_dist.plan.money.ledger import Period
from nexa_dist.run import files
from nexa_dist.run.aws import instance_usage
from nexa_dist.run.aws.client import Cloud
from nexa_dist.run.aws.instance_usage import InstanceUsage
from nexa_dist.run.aws.tagged import TaggedResource
from nexa_dist.run.workspace import ClusterFolder

SEEN_EVERY_S = 300.0
FORGOTTEN_S = 1800.0
"""The cloud shows a dead instance for about an hour: one that it has not shown for so long was dead before."""
DUE_S = 60.0
"""Seconds after its deadline at which a node has ended at the latest."""


def record(
    ctx: Context,
    folder: ClusterFolder,
    scope: AwsScope,
    things: Sequence[TaggedResource],
    now_unix: float,
    final: bool = False,
) -> None:
    """Adds what the cloud told of the cluster's instances. With `final` nothing of the cluster is on any more."""
    gone_before = _of_earlier(ctx.workspace.root, folder.name)
    found = [m for m in instance_usage.machines(things) if m.id not in gone_before]
    _record_prices(folder, scope, found, now_unix)
    events = read(folder.path)
    started = {(e["id"], e["at"]) for e in events if e["event"] == "node_start" and e.get("source") == "cloud"}
    for machine in found:
        if (machine.id, machine.start_unix) not in started:
            _record_start(folder, machine, events)
    _record_stops(folder, scope, found, now_unix, final)
    if any(machine.on for machine in found) and now_unix - ledger.last_seen(events) >= SEEN_EVERY_S:
        folder.ledger("seen", at=now_unix)


def _of_earlier(root: Path, name: str) -> set[str]:
    """Instances of torn-down clusters of this name: the cloud shows them for an hour, with the same tags."""
    kept = (root / ".nexa" / "history").glob(f"{name}_*/ledger.jsonl")
    return {str(e.get("id")) for path in kept for e in read(path.parent) if e["event"] == "node_start"}


def _record_prices(folder: ClusterFolder, scope: AwsScope, found: Sequence[InstanceUsage], now_unix: float) -> None:
    """The moves of every spot price at which a machine of ours was on, since the last one that is known."""
    events = read(folder.path)
    known = ledger.moves(events)
    spans = [(m.offer, m.region, m.start_unix, now_unix if m.on else m.stop_unix or now_unix) for m in found]
    spans += [(p.offer, scope.region, p.start_unix, now_unix) for p in ledger.periods(events) if p.stop_unix is None]
    for offer, region in sorted({(offer, region) for offer, region, _, _ in spans if offer.endswith(" spot")}):
        mine = [(since, until) for title, where, since, until in spans if (title, where) == (offer, region)]
        last = known[offer][-1][0] if offer in known else 0.0
        since, until = last or min(begin for begin, _ in mine), max(end for _, end in mine)
        if since >= until and last:
            continue
        kind, zone, _ = offer.split()
        moves = Cloud(region).spot_moves(kind, zone, _time(since), _time(max(since, until)))
        for at, usd in moves:
            if at > last:
                folder.ledger("price", at=at, offer=offer, usd_per_hour=usd)


def _time(unix: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix, datetime.UTC)


def _record_start(folder: ClusterFolder, machine: InstanceUsage, events: Sequence[dict[str, Any]]) -> None:
    config = files.object_or_empty(folder.path / "config.json")
    folder.ledger(
        "node_start",
        at=machine.start_unix,
        node=machine.node,
        id=machine.id,
        offer=machine.offer,
        usd_per_hour=_price(folder, machine, config, events),
        disk_gb=config.get("volume_gb") or ClusterConfig.model_fields["volume_gb"].default,
        disk_usd_per_gb_month=prices.book().disk.usd.get(machine.region),
        public_ip=True,  # every node of ours has one
        address_usd_per_hour=prices.book().address.usd.get(machine.region),
        request=machine.spot_request,
        source="cloud",
    )


def _price(
    folder: ClusterFolder, machine: InstanceUsage, config: dict[str, Any], events: Sequence[dict[str, Any]]
) -> float | None:
    """USD/h at its start: the cloud's own, the one at which it was chosen, on demand, the file's; None: unknown."""
    kind, zone, market = machine.place
    if market == "spot":
        before = [usd for at, usd in ledger.moves(events).get(machine.offer, ()) if at <= machine.start_unix]
        if before:
            return before[-1]
    chosen = files.object_or_empty(folder.path / "offer.json")
    if (chosen.get("type"), chosen.get("zone"), chosen.get("market")) == (kind, zone, market):
        return ledger.price(chosen.get("usd_per_hour"))
    listed = prices.on_demand(kind, machine.region)
    return listed if listed is not None else ledger.price(config.get("price_usd_per_hour"))


def _record_stops(
    folder: ClusterFolder, scope: AwsScope, found: Sequence[InstanceUsage], now_unix: float, final: bool
) -> None:
    """The ends that the cloud tells, and the latest possible one of a machine that it no longer shows."""
    shown = {machine.id: machine for machine in found}
    hidden: list[Period] = []
    for period in open_periods(folder):
        machine = shown.get(period.id)
        if machine is None:
            hidden.append(period)
        elif not machine.on and machine.stop_unix is not None:
            stop(folder, period, machine.stop_unix, machine.why, "cloud")
        elif not machine.on or final:
            stop(folder, period, now_unix, machine.why or "teardown", "clock")
    if hidden:
        _record_hidden(folder, scope, hidden, now_unix, final)


def _record_hidden(
    folder: ClusterFolder, scope: AwsScope, hidden: Sequence[Period], now_unix: float, final: bool
) -> None:
    """The cloud keeps a spot request for longer than its instance. Without one, the node was on for as long as its
    own deadline let it, at the most."""
    events = read(folder.path)
    seen = ledger.last_seen(events)
    requests = {e["id"]: str(e["request"]) for e in events if e["event"] == "node_start" and e.get("request")}
    ends = Cloud(scope.region).spot_ends(list(requests.values())) if requests else {}
    for period in hidden:
        if end := ends.get(requests.get(period.id, "")):
            stop(folder, period, end, "told by its spot request", "cloud")
        elif final or now_unix - max(seen, period.start_unix) >= FORGOTTEN_S:
            due = max(scope.expires_unix or now_unix, seen, period.start_unix) + DUE_S
            stop(folder, period, min(now_unix, due), "not shown by the cloud any more", "clock")
