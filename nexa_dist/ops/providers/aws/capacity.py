"""Finds somebody who has the nodes: asks for prices, orders the offers, tries one gang after the other."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws import price_cache
from nexa_dist.plan.aws import given as aws_given
from nexa_dist.plan.aws import offers, prices
from nexa_dist.plan.aws.offers import Candidate, Refusal
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.refusal import CURES, OF_INSTANCES_CURE
from nexa_dist.run import files
from nexa_dist.run.aws.client import Cloud
from nexa_dist.run.terraform.stack import TerraformFailed
from nexa_dist.shape import lenient, of

FIRST_WAIT_S, LONGEST_WAIT_S = 15.0, 120.0
SHOWN = 8
BUSY_WAITS_S = (2.0, 5.0, 10.0, 20.0)


def memory_file(ctx: Context) -> Path:
    """File of the workspace with those who refused or preempted lately: a refusal holds for every cluster of it."""
    return ctx.workspace.root / ".nexa" / "capacity.jsonl"


def remember(ctx: Context, title: str, code: str) -> None:
    kind, zone, market = title.split()
    files.append_json(memory_file(ctx), asdict(Refusal(kind, zone, market, code, ctx.now())))


def survey(ctx: Context, config: ClusterConfig, scope: AwsScope) -> tuple[list[tuple[Candidate, str]], list[str]]:
    """Candidates in the order in which they are tried, each with its reason, and what was left out and why."""
    if scope.given.reservation:
        return [(one := _reserved(ctx, config, scope), one.why)], []
    cloud = Cloud(scope.region)
    named = sorted({o.type for o in config.offers if not isinstance(o, str)})
    gpus = cloud.gpus(named)
    if not named:
        gpus = {kind: count for kind, count in gpus.items() if count == config.gpus_per_node}
    spot = {}
    if gpus and config.market != "on_demand":
        spot = cloud.spot_prices(sorted(gpus), datetime.datetime.fromtimestamp(ctx.now(), datetime.UTC))
        price_cache.keep(ctx, scope.region, spot)
    market = offers.RegionMarket(
        gpus=gpus,
        zones=cloud.zones(sorted(gpus)) if gpus else {},
        spot=spot,
        on_demand=lambda kind: prices.on_demand(kind, scope.region),
    )
    found, dropped = offers.candidates(config, market)
    if scope.given.subnets:
        found, dropped = offers.in_zones(found, dropped, scope.given.subnets)
    past = [refusal for line in files.read_lines(memory_file(ctx)) if (refusal := lenient(of(Refusal))(line))]
    if not found:
        raise NexaError(
            "no offer is left: " + (_some(dropped) or f"no type with {config.gpus_per_node} GPUs is offered"),
            hint="widen offers, or raise max_price_usd_per_hour",
        )
    return offers.ordered(found, past, ctx.now()), dropped


def _reserved(ctx: Context, config: ClusterConfig, scope: AwsScope) -> Candidate:
    """Candidate that the reservation holds; enough of it must be free now, too."""
    name, cloud = scope.given.reservation, Cloud(scope.region)
    row = cloud.reservation(name)
    _, faults = aws_given.reserved(name, row, config.nodes or 0, ctx.now())
    kind = row["InstanceType"] if row else ""
    gpus = cloud.gpus([kind]).get(kind, 0) if row else 0
    if row and gpus < (config.gpus_per_node or 0):
        faults.append(f"capacity reservation {name} is of {kind} with {gpus} GPUs, {config.gpus_per_node} are wanted")
    usd = config.price_usd_per_hour or prices.on_demand(kind, scope.region)
    if row and usd is None:
        faults.append(f"{kind}: no price is known (price_usd_per_hour in the cluster's file gives one)")
    if row is None or usd is None or faults:
        raise NexaError(
            "; ".join(faults), hint="the reservation is in your account: aws ec2 describe-capacity-reservations"
        )
    why = f"reserved: {name}, paid for whether it runs or not"
    return Candidate(kind, row["AvailabilityZone"], "on_demand", gpus, usd, why)


def _some(reasons: Sequence[str]) -> str:
    rest = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return "; ".join(reasons[:SHOWN]) + rest


def patiently(ctx: Context, apply: Callable[[], None]) -> None:
    """`apply`, again while the cloud is busy or its answer to a question was lost: what was made stays, the rest comes.

    The provider itself makes two attempts of each call for instances, so that a lack of capacity is told at once.
    """
    for wait_s in (*BUSY_WAITS_S, None):
        try:
            apply()
            return
        except TerraformFailed as error:
            verdict = offers.verdict(str(error))
            if not verdict.passing or wait_s is None:
                raise
            ctx.detail(f"the cloud is busy or out of reach ({verdict.code}); again in {wait_s:.0f} s")
            ctx.sleep(wait_s)


def search(
    ctx: Context,
    config: ClusterConfig,
    look: Callable[[], list[tuple[Candidate, str]]],
    create: Callable[[Candidate], None],
    release: Callable[[], None],
) -> Candidate:
    """Tries `create` with one candidate after the other until one gang is whole; `release` gives a part of one back.

    A lack of capacity moves on, and a quota moves on to other types and markets; anything else stops. With
    wait_for_capacity_minutes it goes round again, but not to what a quota forbids. Raises NexaError with what each one
    said.
    """
    until = ctx.now() + config.wait_for_capacity_minutes * 60
    wait_s = FIRST_WAIT_S
    forbidden: dict[tuple[str, str], str] = {}
    while True:
        refused: list[str] = []
        for candidate, why in look():
            if (candidate.type, candidate.market) in forbidden:
                continue
            price = f"{candidate.usd_per_hour:.2f} USD/h a node, {candidate.usd_per_gpu_hour:.2f} a GPU"
            ctx.detail(f"trying {candidate.title}: {price}; {why}")
            try:
                create(candidate)
                return candidate
            except TerraformFailed as error:
                release()
                verdict = offers.verdict(str(error))
                if not verdict.move_on:
                    words = f"{verdict.message}\n{error}" if verdict.message else str(error)
                    raise NexaError(words, hint=error.hint) from error
                remember(ctx, candidate.title, verdict.code)
                said = f"{candidate.title}: {verdict.said}"
                ctx.detail(f"{candidate.title}: {verdict.code}, its part of the gang was given back ({verdict.said})")
                if verdict.account_wide:
                    forbidden[candidate.type, candidate.market] = said
                else:
                    refused.append(said)
        if not refused or ctx.now() + wait_s > until:
            raise _nobody(config, refused, list(forbidden.values()))
        ctx.detail(f"nobody has {config.nodes} nodes now; asking again in {wait_s:.0f} s")
        ctx.sleep(wait_s)
        wait_s = min(wait_s * 2, LONGEST_WAIT_S)


def _nobody(config: ClusterConfig, refused: Sequence[str], forbidden: Sequence[str]) -> NexaError:
    """Error that says how each offer was refused. To wait helps against a lack of capacity alone."""
    said = "; ".join((*refused, *forbidden))
    cures = [CURES["capacity"]] if refused else ["nothing is left running"]
    cures += [OF_INSTANCES_CURE] if forbidden else []
    what = "no capacity" if refused else "the account's quota has no room"
    return NexaError(f"{what} for {config.nodes} nodes: {said}", hint="; ".join(cures))
