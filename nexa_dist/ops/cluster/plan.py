"""nexa plan: what would be made, where and for how much. It changes nothing; a saved plan is applied as is."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import EXIT_BUDGET, NexaError, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.money.budget import allowance
from nexa_dist.ops.providers.aws import bucket, capacity, price_cache
from nexa_dist.ops.providers.aws import limits as aws_limits
from nexa_dist.ops.providers.aws.gang import Saved, offer_file
from nexa_dist.ops.providers.aws.scope import open_scope, region_wanted
from nexa_dist.ops.providers.contract import Wish
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.ops.providers.table import provider_of
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.aws import prices
from nexa_dist.plan.aws.offers import Candidate, RegionMarket, candidates
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.plan.money.budget import too_small
from nexa_dist.plan.money.estimate import MOVED_MOST, Estimate, Rates, estimate, moved, rates_of
from nexa_dist.run import files
from nexa_dist.shape import of

VERSION = 1


@dataclass(frozen=True)
class Preview:
    """Offers in the order in which they are tried, with the reason for each place; and what was left out."""

    offers: tuple[tuple[Candidate, str], ...]
    dropped: tuple[str, ...]
    nodes: int
    max_hours: float
    bill: Estimate
    rates: Rates
    budget_usd: float | None = None
    unknown: tuple[str, ...] = ()
    """Items that cost something and have no price in the book for this region."""
    on_demand: Mapping[str, float | None] = field(default_factory=dict)
    """USD/h by instance type."""
    not_asked: tuple[str, ...] = ()
    """Reasons for which AWS may still refuse: a quota or an image that could not be looked at, and why."""
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Candidate:
        return self.offers[0][0]

    @property
    def usd_per_hour(self) -> float:
        return self.nodes * self.chosen.usd_per_hour

    def to_json(self) -> dict[str, Any]:
        rows = [
            {**asdict(c), "usd_per_gpu_hour": round(c.usd_per_gpu_hour, 6), "why": why,
             "on_demand_usd_per_hour": self.on_demand.get(c.type)}
            for c, why in self.offers
        ]  # fmt: skip
        return {
            "offers": rows,
            "left_out": list(self.dropped),
            "nodes": self.nodes,
            "usd_per_hour": round(self.usd_per_hour, 6),
            "around_usd_per_hour": round(self.rates.around, 6),
            "budget_usd": self.budget_usd,
            "price_unknown": list(self.unknown),
            "not_asked": list(self.not_asked),
            "notes": list(self.notes),
            **self.bill.to_json(),
        }


def preview(ctx: Context, config: ClusterConfig) -> Preview | None:
    """Preview of what provision would try; None for what costs nothing, and for a cluster that is there already."""
    folder = ctx.workspace.cluster(config.name)
    there = folder.json.exists() and offer_file(folder).exists()  # a try that failed asks once more
    if not config.traits.priced or (known_scope(folder) and there):
        return None
    scope = open_scope(ctx, folder, config)
    ordered, dropped = capacity.survey(ctx, config, scope)
    unasked = aws_limits.refuse_impossible(config, scope)
    within, short, silent = aws_limits.within(config, scope, ordered)
    seen = _preview(config, scope.region, within, [*short, *dropped])
    return replace(seen, not_asked=(*unasked, *silent), notes=bucket.notes(scope))


def offline(ctx: Context, config: ClusterConfig) -> Preview:
    """Preview from the price book and the spot prices that were asked last: nobody is asked now. Without those, zones
    are a guess, and spot is taken to cost as much as on demand.

    Raises UsageError for other providers, NexaError when the book knows none of the offers.
    """
    if not config.traits.priced:
        raise UsageError("only provider aws has a price book", hint="leave --offline")
    if config.capacity_reservation:
        raise UsageError("only the cloud knows what the reservation holds", hint="leave --offline")
    region = region_wanted(config)
    types = {kind: known.gpus for kind, known in prices.book().types.items() if region in known.on_demand_usd_per_hour}
    spot, age_s = price_cache.kept(ctx, region)
    named = [*((o.type, o.zone) for o in config.offers if not isinstance(o, str)), *spot]
    zones = {kind: sorted({zone for name, zone in named if name == kind and zone} or {f"{region}a"}) for kind in types}
    market = RegionMarket(types, zones, spot, lambda kind: prices.on_demand(kind, region), age_s)
    found, dropped = candidates(config, market)
    if not found:
        raise NexaError("the price book knows none of the offers: " + "; ".join(dropped), hint="nexa plan, online")
    return _preview(config, region, [(candidate, candidate.why) for candidate in found], dropped)


def _preview(
    config: ClusterConfig, region: str, ordered: Sequence[tuple[Candidate, str]], dropped: Sequence[str]
) -> Preview:
    chosen, nodes, hours = ordered[0][0], config.nodes or 0, config.max_hours or 0.0
    rates, unknown = rates_of(config, region, chosen, max(c.usd_per_hour for c, _ in ordered))
    if config.budget_usd and (why := too_small(config.budget_usd, rates.running)):
        raise NexaError(why, hint="raise budget_usd", code=EXIT_BUDGET)
    bill = estimate(rates, nodes, hours, config.budget_usd)
    listed = {candidate.type: prices.on_demand(candidate.type, region) for candidate, _ in ordered}
    return Preview(tuple(ordered), tuple(dropped), nodes, hours, bill, rates, config.budget_usd, unknown, listed)


def refuse_moved_price(ctx: Context, config: ClusterConfig, saved: Saved) -> None:
    """Raises NexaError when the price of a saved plan is not what it was."""
    then = saved.candidate
    ordered, dropped = capacity.survey(ctx, config, saved.scope)
    now = next((candidate for candidate, _ in ordered if candidate.title == then.title), None)
    again = f"nexa plan --cluster FILE -o PLAN, then look at it once more (prices may move by {MOVED_MOST:.0%})"
    if now is None:
        why = next((line for line in dropped if line.startswith(then.title)), "it is offered no more")
        raise NexaError(f"the plan's offer {then.title} cannot be had: {why}", hint=again)
    if moved(then.usd_per_hour, now.usd_per_hour) > MOVED_MOST:
        raise NexaError(
            f"{then.title} was {then.usd_per_hour:.4f} USD/h when the plan was saved, now {now.usd_per_hour:.4f}",
            hint=again,
        )


def plan(ctx: Context, config: ClusterConfig, out: Path | None) -> dict[str, Any]:
    """Terraform's plan of the cluster, judged by the named policies; saved to `out` when it is given.

    Raises NexaError when a policy is violated: such a plan is not saved.
    """
    provider = provider_of(config.provider)
    folder = ctx.workspace.cluster(config.name)
    if not config.traits.makes:
        provider.plan(ctx, folder, config, Wish())  # which says why not
    if out and not config.traits.priced:
        raise UsageError("only a plan of provider aws can be saved", hint="leave -o out")
    with folder.locked("plan"):
        report: dict[str, Any] = {"cluster": config.name, "provider": config.provider}
        seen = preview(ctx, config)
        offers = [candidate for candidate, _ in seen.offers] if seen else ()
        made = provider.plan(ctx, folder, config, Wish(allowance(ctx, folder, config), offers=offers))
        for line in made.lines:
            ctx.say(line)
        report |= {**(seen.to_json() if seen else {}), "changes": changes(made.told), **made.report}
        report |= {"alarm": made.alarm} if made.alarm else {}
        report["violations"] = [asdict(finding) for finding in made.violations]
        if report["violations"]:
            said = "; ".join(f"{v['policy']}: {v['address']}: {v['message']}" for v in report["violations"])
            raise NexaError(f"the plan violates a policy: {said}", hint="this is a defect of the stack: report it")
        if out and made.saves and made.terraform:
            scope, candidate, variables = made.saves
            save(out, config, scope, candidate, variables, made.terraform.plan_file.read_bytes())
            report["saved"] = str(out)
    return report


def changes(planned: dict[str, Any]) -> dict[str, list[str]]:
    """Addresses by what happens to them: create, update, replace, delete. What stays is left out."""
    found: dict[str, list[str]] = {}
    for row in planned.get("resource_changes", ()):
        actions = [action for action in row["change"]["actions"] if action not in ("no-op", "read")]
        if actions:
            found.setdefault("replace" if len(actions) > 1 else actions[0], []).append(row["address"])
    return found


def save(
    out: Path, config: ClusterConfig, scope: AwsScope, candidate: Candidate, variables: dict[str, Any], plan: bytes
) -> None:
    """Save a plan in one file: the cluster's config, the offer, the variables and Terraform's own plan. It holds no
    secret."""
    record = {
        "nexa_plan": VERSION,
        "config": config.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
        "site": scope.to_json(),
        "candidate": asdict(candidate),
        "variables": variables,
        "terraform_plan": base64.b64encode(plan).decode(),
    }
    files.write_text(out, json.dumps(record) + "\n", 0o600)


def load(ctx: Context, path: Path) -> tuple[ClusterConfig, Saved]:
    """A saved plan. Raises UsageError when it is torn, of another version or of another workspace."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["nexa_plan"] != VERSION:
            raise ValueError(f"version {record['nexa_plan']!r}")
        config = ClusterConfig.model_validate_json(json.dumps(record["config"]))
        saved = Saved(
            of(AwsScope)(record["site"]),
            of(Candidate)(record["candidate"]),
            dict(record["variables"]),
            base64.b64decode(record["terraform_plan"], validate=True),
        )
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(
            f"{path} is no plan of this version of nexa", hint=f"nexa plan -o makes one ({error})"
        ) from None
    if saved.scope.workspace != our_tag(ctx):
        raise UsageError(
            f"{path} was made in workspace {saved.scope.workspace}, and its keys and state are there",
            hint="apply it there, or plan again here",
        )
    return config, saved
