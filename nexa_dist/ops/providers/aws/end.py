"""The end of an aws cluster: Terraform destroy if its state allows, a sweep by tag, twice, then the cloud's word."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws import bucket
from nexa_dist.ops.providers.aws import record_usage as aws_record_usage
from nexa_dist.ops.providers.aws.claim import interrupted
from nexa_dist.ops.providers.aws.gang import settle_s, terraform_of
from nexa_dist.ops.providers.aws.scope import check_account, owner_wanted, region_wanted
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.run import files
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import end_tagged, strangers, tagged
from nexa_dist.run.aws.denied import denied_action
from nexa_dist.run.aws.strangers import Stranger
from nexa_dist.run.aws.tagged import TaggedResource, Unseen
from nexa_dist.run.terraform.locks import Locked
from nexa_dist.run.workspace import ClusterFolder

TRIES = 3
DESTROY_LIMIT_S = 900.0
"""Limit in seconds of all tries together: what Terraform has not ended by then the sweep ends, or names."""
LOOK_EVERY_S = 10.0
CLAIM = "key pair"
ROUNDS = 100
FEWER = 40
"""Rounds of the sweep where something is hidden: what depends on hidden things does not go by waiting."""


def scope_of(ctx: Context, folder: ClusterFolder, config: ClusterConfig | None) -> AwsScope | None:
    """Scope of the cluster (account, region, owner): as written down here, else (lost, torn, another machine) from the
    cluster's file, else from the journal.

    None for a cluster that is not of provider aws. Raises NexaError when none of them tells.
    """
    try:
        known = known_scope(folder)
    except NexaError:
        if config is None and (told := _journalled_scope(ctx, folder)):
            return told
        if config is None:
            raise
        known = None
    if known:
        return known
    if config is None:
        return _journalled_scope(ctx, folder)
    if config.provider != "aws":
        return None
    region = region_wanted(config)
    who = aws_client.identity(region)
    return AwsScope(
        cluster=folder.name,
        region=region,
        account=who.account,
        owner=owner_wanted(config, who),
        workspace=our_tag(ctx),
        created_unix=0,
        expires_unix=0,
        bucket=config.bucket or "",
        state=config.state or "",
    )


def _journalled_scope(ctx: Context, folder: ClusterFolder) -> AwsScope | None:
    """Scope by the journal's last claim. A folder of aws without one is never taken for a local cluster's: its receipt
    would lie."""
    if told := claims(folder.path):
        region, account, owner = (str(told[-1][key]) for key in ("region", "account", "owner"))
        return AwsScope(folder.name, region, account, owner, our_tag(ctx), created_unix=0, expires_unix=0)
    if "aws" in [files.object_or_empty(path).get("provider") for path in (folder.path / "config.json", folder.json)]:
        raise StillRunning(
            f"cluster {folder.name} is of provider aws, and where it was made is written nowhere here",
            hint="nexa teardown --cluster FILE, with the cluster's file, finds everything by its tags",
        )
    return None


def holder_elsewhere(ctx: Context, scope: AwsScope) -> str:
    """Workspace that has claimed the cluster, when it is another one; empty otherwise."""
    try:
        tags = aws_client.Cloud(scope.region).holder(scope.name)
    except NexaError as error:
        if action := denied_action(error):
            return f"an unknown workspace ({action} is denied)"
        raise
    holder = (tags or {}).get(tagged.WORKSPACE, "")
    return "" if holder in ("", our_tag(ctx)) else holder


class Sight:
    """View of a cluster in the cloud: what is shown of it, and what it hides, at each look.

    Profiles and roles are made for a bucket alone, so without one they are not asked for: unless another workspace had
    a part in the cluster, or the scope is guessed from a file, which may have named a bucket once.
    """

    def __init__(self, scope: AwsScope, regions: Sequence[str]) -> None:
        self.scope, self.regions = scope, regions
        self.kinds = tagged.EC2 if scope.created_unix and not scope.bucket else tagged.ALL
        self.unseen: list[Unseen] = []

    def look(self) -> list[TaggedResource]:
        told = [tagged.look(region, self.scope.owner, self.scope.cluster, self.kinds) for region in self.regions]
        self.unseen = [kind for _, hidden in told for kind in hidden]
        found = [thing for things, _ in told for thing in things]
        if {thing.tags.get(tagged.WORKSPACE) for thing in found} - {self.scope.workspace}:
            self.kinds = tagged.ALL
        return found


Key = tuple[str, str]


def _by_key(things: Sequence[TaggedResource]) -> dict[Key, TaggedResource]:
    """Resources by kind and id: a role and its profile have one name."""
    return {thing.key: thing for thing in things}


def _state(thing: TaggedResource, after: Mapping[Key, TaggedResource], unseen: Sequence[Unseen]) -> str:
    """State of a resource at the last look. A resource that is not shown is gone where its kind was told, and `?` where
    it was not."""
    if thing.key in after:
        return after[thing.key].state
    return "?" if (thing.kind, thing.region) in {(kind.kind, kind.region) for kind in unseen} else "gone"


def destroy(ctx: Context, folder: ClusterFolder, scope: AwsScope) -> dict[str, Any]:
    """Ends everything with the exact owner and cluster tags, in every region that the journal names."""
    check_account(scope, aws_client.identity(scope.region))
    killed = interrupted(folder) or not folder.json.exists()
    regions = sorted({scope.region, *(str(record["region"]) for record in claims(folder.path))})

    sight = Sight(scope, regions)
    seen = _by_key(sight.look())
    for kind in sight.unseen:
        ctx.detail(f"{kind}; what is seen is ended all the same")
    rounds = FEWER if sight.unseen else ROUNDS
    foreign = _strangers(seen.values)
    for stranger in foreign:  # at once: machines take minutes to end
        ctx.say(f"in the way: {stranger}")
    destroyed = _terraform_destroy(ctx, folder, scope, sight.look, bool(foreign))
    with ctx.phase("sweep"), folder.journalled("sweep", regions=regions, found=sorted(i for _, i in seen)):
        swept, errors = end_tagged.sweep(
            lambda: [t for t in sight.look() if t.kind != CLAIM], ctx.detail, ctx.sleep, rounds
        )
        if not errors:
            wait_s = settle_s() if killed else settle_s() / 6
            ctx.detail(f"nothing is left in the cloud's answer; looking again in {wait_s:.0f} s")
            ctx.sleep(wait_s)
            more, errors = end_tagged.sweep(sight.look, ctx.detail, ctx.sleep, rounds)  # the claim goes last
            swept += more
    after = _by_key(sight.look())
    seen |= _by_key(swept)
    states = {thing.key: _state(thing, after, sight.unseen) for thing in seen.values()}
    machines = [thing for thing in seen.values() if thing.kind == "instance"]
    left = [thing.to_json() for thing in after.values() if thing.alive]
    foreign = _strangers(after.values) if left else []
    told = [thing for thing in after.values() if thing.kind == "instance"]
    try:
        aws_record_usage.record(ctx, folder, scope, told, ctx.now(), final=not (left or errors or sight.unseen))
    except NexaError as error:  # what it cost must not hide that it is gone
        ctx.say(f"warning: the ledger is behind: {error}")
    return {
        "region": scope.region,
        "account": scope.account,
        "owner": scope.owner,
        "nodes": [
            {"name": t.tags.get(tagged.NODE, "?"), "id": t.id, "offer": t.offer, "state": states[t.key]}
            for t in machines
        ],
        "resources": [{**thing.to_json(), "state": states[thing.key]} for thing in seen.values()],
        "destroyed": destroyed,
        "swept": [thing.to_json() for thing in swept],
        "not_asked": sorted(set(tagged.ALL) - set(sight.kinds)),
        "left": {"cloud": left, "errors": errors, **({"unseen": list(map(str, sight.unseen))} if sight.unseen else {})},
        **({"in_the_way": [asdict(stranger) for stranger in foreign]} if foreign else {}),
        "kept": bucket.kept(scope),
    }


class InTheWay(NexaError):
    """Others' resources hold what is to be destroyed."""


def _terraform_destroy(
    ctx: Context, folder: ClusterFolder, scope: AwsScope, look: Callable[[], list[TaggedResource]], held: bool
) -> list[str]:
    """Addresses that Terraform destroyed. What it cannot (no state, a lock, an error) is left to the sweep; and all of
    it, where it would wait for what others hold."""
    terraform = terraform_of(ctx, folder, scope)
    if not terraform.chdir.exists():
        return []
    terraform.settle(ctx.detail, interrupt=True)
    until = time.monotonic() + DESTROY_LIMIT_S
    with ctx.phase("terraform: destroy"), folder.journalled("destroy"):
        try:
            resources = [] if held else terraform.resources()
            for attempt in range(TRIES if resources else 0):
                try:
                    terraform.destroy(_watching(ctx, look), max(until - time.monotonic(), 1.0))
                    return resources
                except (Locked, InTheWay):
                    raise
                except NexaError as error:
                    ctx.detail(f"try {attempt + 1} of {TRIES} failed: {error}")
                    if denied_action(error) or time.monotonic() > until:
                        break  # asking again does not give a permission
        except InTheWay as error:
            ctx.detail(f"Terraform was told to stop: {error}")
        except NexaError as error:
            ctx.detail(f"the state cannot be used: {error}")
    ctx.detail("sweeping by tag")
    return []


def _strangers(look: Callable[[], Iterable[TaggedResource]]) -> list[Stranger]:
    """Resources of others that hold what `look` finds. A cloud that does not say holds up nothing."""
    try:
        return strangers.find(look())
    except NexaError:
        return []


def _watching(ctx: Context, look: Callable[[], list[TaggedResource]]) -> Callable[[str], None]:
    """Tells Terraform's progress, and looks for what is in the way while it waits."""
    looked = time.monotonic()

    def on_progress(line: str) -> None:
        nonlocal looked
        ctx.detail(line)
        if "Still destroying" in line and time.monotonic() - looked >= LOOK_EVERY_S:
            if found := _strangers(look):
                raise InTheWay("in the way: " + "; ".join(map(str, found)))
            looked = time.monotonic()

    return on_progress


def claims(folder: Path) -> list[dict[str, Any]]:
    """Every intent to claim in the journal of a cluster's folder: region, account, owner."""
    journal = files.read_lines(folder / "journal.jsonl")
    keys = ("region", "account", "owner")
    return [r for r in journal if r.get("step") == "claim" and all(isinstance(r.get(k), str) and r[k] for k in keys)]
