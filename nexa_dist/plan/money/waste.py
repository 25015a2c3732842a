"""Waste: where the money of a cluster went, and the one thing that would have saved most. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nexa_dist.plan.money import ledger as read
from nexa_dist.plan.money.bill import Bill, Share, Slice, bill, slices

WORTH_SHARE = 0.02
"""Share of the bill: what would save less is not worth a change."""
SAID_SHARE = 0.005
"""Share of the bill: what is less is not said to people."""
LATE, BETWEEN, AGAIN = "idle after the last run", "idle before and between runs", "lost work, done again"


@dataclass(frozen=True)
class Suggestion:
    """One thing to do otherwise, and what it would have saved at most."""

    rule: str
    words: str
    usd: float


@dataclass(frozen=True)
class Again:
    """Work of one attempt that had to be done again, and why."""

    run: str
    attempt: int | None
    share: Share
    why: str

    @property
    def words(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"  {self.share.usd:.2f} USD in attempt {self.attempt} of {self.run}{why}"


@dataclass(frozen=True)
class Waste:
    """`lost` is what did not train, by what it was; `again` what of it was work, by attempt. None is unknown."""

    usd: float | None
    trained: Share
    trained_share: float
    lost: dict[str, Share]
    again: tuple[Again, ...]
    on_demand_usd: float | None
    suggestion: Suggestion | None

    def to_json(self) -> dict[str, Any]:
        best = self.suggestion
        return {
            "usd": None if self.usd is None else round(self.usd, 6),
            "trained": self.trained.to_json(),
            "trained_share": round(self.trained_share, 4),
            "lost": {name: share.to_json() for name, share in self.lost.items()},
            "again": [
                {"run": each.run, "attempt": each.attempt, **each.share.to_json(), "why": each.why}
                for each in self.again
            ],
            "on_demand_usd": None if self.on_demand_usd is None else round(self.on_demand_usd, 6),
            "suggestion": best and {"rule": best.rule, "words": best.words, "usd": round(best.usd, 6)},
        }

    def lines(self) -> list[str]:
        """Lines about the waste, for people."""
        if self.usd is None:
            return ["cost unknown: an instance has no known price"]
        said = [f"{self.usd:.2f} USD, {self.trained_share:.0%} of them for training ({self.trained.usd:.2f} USD)"]
        for name, share in self.lost.items():
            if share.usd >= SAID_SHARE * self.usd:
                said.append(f"{share.usd:.2f} USD {name}: {_time(share.seconds)} of nodes")
                said += [each.words for each in self.again if name == AGAIN]
        if self.on_demand_usd is not None and self.on_demand_usd > self.usd * 1.001:
            said.append(f"on demand: {self.on_demand_usd:.2f} USD")
        if self.suggestion:
            said.append(f"saves most ({self.suggestion.usd:.2f} USD at most): {self.suggestion.words}")
        return said


def waste(lines: Iterable[Any], now_unix: float, on_demand: Callable[[str], float | None], bucket: bool) -> Waste:
    """`on_demand` is USD/h of an instance type; `bucket`: whether checkpoints went where they outlive the nodes."""
    events = read.clean(lines)
    made, pieces = bill(events, now_unix), slices(events, now_unix)
    last = max((piece.end_unix for piece in pieces if piece.run), default=0.0)
    lost: dict[str, Share] = {}
    for piece in pieces:
        if piece.phase != "training":
            name = _name(piece, last)
            lost[name] = lost.get(name, Share()) + piece.share
    trained = made.phases["training"]
    ideas = [
        idea for idea in _ideas(events, pieces, lost, bucket) if idea.usd > WORTH_SHARE * made.usd and idea.usd > 0
    ]
    return Waste(
        usd=made.cost_usd,
        trained=trained,
        trained_share=_part(trained, made),
        again=_again(events, pieces),
        lost={name: lost[name] for name in sorted(lost, key=lambda name: (-lost[name].usd, -lost[name].seconds))},
        on_demand_usd=_on_demand_usd(pieces, on_demand),
        suggestion=max(ideas, key=lambda idea: idea.usd, default=None),
    )


def _part(trained: Share, made: Bill) -> float:
    """Share of the bill spent training; of node time when nothing has a price."""
    if made.usd:
        return trained.usd / made.usd
    return trained.seconds / made.seconds if made.seconds else 0.0


def _again(events: Iterable[dict[str, Any]], pieces: Iterable[Slice]) -> tuple[Again, ...]:
    told = {(e.get("run"), e.get("attempt")): str(e.get("why") or "") for e in events if e["event"] == "lost"}
    shares: dict[tuple[str, int | None], Share] = {}
    for piece in pieces:
        if piece.phase == "lost" and piece.run:
            key = (piece.run, piece.attempt)
            shares[key] = shares.get(key, Share()) + piece.share
    return tuple(Again(run, attempt, share, told.get((run, attempt), "")) for (run, attempt), share in shares.items())


def _name(piece: Slice, last_run_unix: float) -> str:
    if piece.phase == "idle":
        return LATE if piece.begin_unix >= last_run_unix else BETWEEN
    return {"lost": AGAIN, "recovering": "recovering"}.get(piece.phase, piece.phase)


def _on_demand_usd(pieces: Iterable[Slice], on_demand: Callable[[str], float | None]) -> float | None:
    total = 0.0
    for piece in pieces:
        kind, _, market = piece.period.offer.partition(" ")
        hours = (piece.end_unix - piece.begin_unix) / 3600
        listed = on_demand(kind) if market.endswith(" spot") else None
        usd = listed * hours if listed is not None else piece.instance_usd
        if usd is None or (listed is None and market.endswith(" spot")):
            return None
        total += usd + piece.disk_usd + piece.address_usd
    return total


def _ideas(
    events: Iterable[dict[str, Any]], pieces: list[Slice], lost: dict[str, Share], bucket: bool
) -> Iterable[Suggestion]:
    def usd(*names: str) -> float:
        return sum(lost[name].usd for name in names if name in lost)

    # Hosts of one's own do not switch themselves off.
    idle = "" if all(piece.period.offer == "static" for piece in pieces) else ", or idle_minutes in the cluster's file"
    yield Suggestion("late", f"nexa teardown as soon as the run has ended{idle}", usd(LATE))
    yield Suggestion("gaps", f"start the runs one right after the other{idle}", usd(BETWEEN))
    yield Suggestion(
        "boot",
        "several runs on one cluster, or on aws an image of a node that is set up (nexa image bake)",
        usd("booting", "bootstrapping"),
    )
    more = "" if bucket else ", and a bucket, so that a lost node's checkpoints are kept"
    yield Suggestion("save", f"save checkpoints more often (trainer.save_every){more}", usd(AGAIN))
    if cheaper := _cheaper(events, pieces):
        yield cheaper


def _cheaper(events: Iterable[dict[str, Any]], pieces: list[Slice]) -> Suggestion | None:
    """Against the cheapest offer that was seen when the nodes were chosen."""
    told = (event for event in events if event["event"] == "offered")
    seen = [(usd, str(event.get("offer"))) for event in told if (usd := read.price(event.get("usd_per_hour")))]
    if not seen:
        return None
    usd, title = seen[0]
    saved = sum(
        (piece.instance_usd or 0.0) - usd * (piece.end_unix - piece.begin_unix) / 3600
        for piece in pieces
        if piece.period.offer != title
    )
    return Suggestion("offer", f"{title} was {usd:.2f} USD/h a node when these were chosen (offers: cheapest)", saved)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
