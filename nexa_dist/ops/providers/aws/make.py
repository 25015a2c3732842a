"""The nodes of an aws cluster: claimed, reconciled with what the cloud says exists, made as one gang, booted.

Terraform's state is a cache. The truth is the journal, written before every act, and the tags, asked of the cloud.
"""

from __future__ import annotations

from dataclasses import asdict

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws import bucket, capacity
from nexa_dist.ops.providers.aws import limits as aws_limits
from nexa_dist.ops.providers.aws.boot import boot
from nexa_dist.ops.providers.aws.claim import claim, interrupted, reconcile, still_ours
from nexa_dist.ops.providers.aws.gang import CREATE_LIMIT_S, Gang, Saved, known_offer, offer_file, open_gang
from nexa_dist.ops.providers.contract import Made, Wish
from nexa_dist.ops.providers.scope_file import scope_file
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.plan.aws.scope import NODE_PYTHON
from nexa_dist.run import bundle, files
from nexa_dist.run.aws import tagged
from nexa_dist.run.workspace import ClusterFolder


def make(
    ctx: Context,
    folder: ClusterFolder,
    config: ClusterConfig,
    wish: Wish,
) -> Made:
    """The nodes, answering over ssh with their pinned keys. Those that are lost are ended first: an instance that
    cannot be reached may live, cost, and write."""
    saved, lost = wish.saved, wish.lost
    gang = open_gang(ctx, folder, config, wish.hours, saved.scope if saved else None)
    wish.begin()
    files.write_json(scope_file(folder), gang.scope.to_json())  # before the first call that makes something
    gang.terraform.settle(ctx.detail, interrupt=False)
    with ctx.phase("claim"):
        killed = interrupted(folder)
        gang.find()  # what may not be listed could not be ended either: told before anything is made
        claim(gang)
        if lost:
            with folder.journalled("fence", nodes=list(lost)):
                gang.end(lambda t: t.tags.get(tagged.NODE) in lost, "instance")
        kept = reconcile(gang, killed)
        bucket.ensure(ctx, gang.scope)
    with ctx.phase(f"terraform: {config.nodes} nodes"):
        chosen = create(gang, kept, saved)
    still_ours(gang)
    made, homes = boot(gang, chosen, kept)
    try:
        tagged.tag_launched(gang.find())
    except NexaError as error:  # a cluster that trains is worth more; they go with their instances
        ctx.say(f"warning: interfaces or spot requests have no tags: {error}")
    return Made(made, homes, {"nexa_python": NODE_PYTHON, "ansible_python_interpreter": "/usr/bin/python3"})


def create(gang: Gang, kept: set[str], saved: Saved | None = None) -> Candidate:
    """The whole gang from one candidate, or what is missing of the one that lives. Nothing of a failed try is left."""
    ctx, folder, terraform = gang.ctx, gang.folder, gang.terraform
    zones: list[str] = []

    def look() -> list[tuple[Candidate, str]]:
        if saved:
            return [(saved.candidate, "the saved plan")]
        if kept:
            return [(known_offer(folder), "the gang that is there")]
        with ctx.phase("capacity"), folder.journalled("capacity"):
            ordered, dropped = capacity.survey(ctx, gang.config, gang.scope)
            ordered, short, unasked = aws_limits.within(gang.config, gang.scope, ordered)
        for line in (*short, *dropped):
            ctx.detail(f"left out: {line}")
        for line in unasked:
            ctx.detail(f"not looked at, so AWS may still refuse it: {line}")
        zones[:] = [candidate.zone for candidate, _ in ordered]
        cheapest = min((candidate for candidate, _ in ordered), key=lambda candidate: candidate.usd_per_hour)
        folder.ledger("offered", at=ctx.now(), offer=cheapest.title, usd_per_hour=cheapest.usd_per_hour)
        return ordered

    def attempt(candidate: Candidate) -> None:
        variables = saved.variables if saved else gang.variables(candidate, zones)
        files.write_json(offer_file(folder), asdict(candidate))
        with folder.journalled("create", offer=candidate.title, nodes=variables["node_names"]):
            terraform.prepare(bundle.root() / "terraform", variables)
            if saved:
                terraform.plan_file.write_bytes(saved.plan)
                terraform.apply_plan(ctx.detail, timeout_s=CREATE_LIMIT_S)
            else:
                capacity.patiently(ctx, lambda: terraform.apply(ctx.detail, timeout_s=CREATE_LIMIT_S))
        gang.end_all_but(terraform.ids())

    # A saved plan is good for one try: what the first one changed makes it stale.
    once = gang.config.model_copy(update={"wait_for_capacity_minutes": 0.0})
    wanted = once if saved else gang.config
    return capacity.search(ctx, wanted, look, attempt, release=lambda: gang.end_all_but(kept))
