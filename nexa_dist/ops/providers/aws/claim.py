"""Claim on an aws cluster's name, and the resources of the cluster that exist in the cloud beside the state."""

from __future__ import annotations

from nexa_dist.errors import NexaError
from nexa_dist.ops.providers.aws import capacity
from nexa_dist.ops.providers.aws.gang import Gang, settle_s
from nexa_dist.plan.timeline import timeline
from nexa_dist.refusal import PREEMPTED
from nexa_dist.run import files
from nexa_dist.run.aws import dangling, tagged
from nexa_dist.run.aws.client import Cloud
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.workspace import ClusterFolder

ATTACHED = ("network interface", "volume", "key pair", "spot request")
"""Kinds that no state names: they come and go with an instance, or are the claim itself."""


class Held(NexaError):
    """Another workspace has claimed the cluster."""


def interrupted(folder: ClusterFolder) -> bool:
    """Tell whether a command died between an intent and its outcome, and no gang was made whole since: something may
    exist that nobody saw."""
    rows = timeline(files.read_lines(folder.path / "journal.jsonl"))
    whole = [place for place, row in enumerate(rows, 1) if row["step"] == "create" and row["state"] == "done"]
    return any(row["state"] == "killed" for row in rows[whole[-1] if whole else 0 :])


def claim(gang: Gang) -> None:
    """Takes the cluster's name for this workspace. Raises Held when another one has it; then nothing was touched."""
    scope = gang.scope
    public = (gang.folder.ssh / "client.pub").read_text(encoding="ascii")
    with gang.folder.journalled(
        "claim", region=scope.region, account=scope.account, owner=scope.owner, name=scope.name
    ):
        holder = Cloud(scope.region).claim(scope.name, public, scope.tags)
        holder = _holder(gang) if holder is None else holder
    _check_holder(gang, holder or {})


def _holder(gang: Gang) -> dict[str, str] | None:
    """Tags of the claim; None when there is none, also not after the time that the cloud may hide a new one."""
    cloud, until = Cloud(gang.scope.region), gang.ctx.now() + settle_s()
    while (holder := cloud.holder(gang.scope.name)) is None and gang.ctx.now() < until:
        gang.ctx.sleep(2.0)
    return holder


def _check_holder(gang: Gang, tags: dict[str, str]) -> None:
    holder = tags.get("nexa:workspace", "somebody whose key pair has no tags of nexa")
    if holder != gang.scope.workspace:
        raise Held(
            f"cluster {gang.scope.cluster} of owner {gang.scope.owner} is held by {holder}",
            hint="work there; or end it from here: nexa teardown --cluster FILE, with the cluster's file",
        )


def still_ours(gang: Gang) -> None:
    """A teardown from elsewhere takes the claim away; what was made meanwhile would outlive its receipt."""
    holder = _holder(gang)
    if holder is None or holder.get("nexa:workspace") != gang.scope.workspace:
        gang.end(lambda thing: thing.tags.get(tagged.WORKSPACE) == gang.scope.workspace)
        raise Held(
            f"cluster {gang.scope.cluster} was torn down from elsewhere while it was made", hint="provision again"
        )


def reconcile(gang: Gang, killed: bool) -> set[str]:
    """Ends what carries our tags and is in no state; answers the ids of the living instances that are in it."""
    if killed:
        gang.ctx.detail(f"an earlier command was killed: waiting {settle_s():.0f} s for what it may have made")
        gang.ctx.sleep(settle_s())
    try:
        known = gang.terraform.ids()
    except CommandFailed as error:
        if gang.terraform.backend:  # out of reach is not torn: nothing that lives is ended for that
            raise
        gang.ctx.detail(f"the state cannot be read, so everything is made anew: {error.result.tail(1)}")
        gang.terraform.state.rename(gang.terraform.state.with_suffix(".torn"))
        known = set()
    found = gang.find()
    foreign = {t.tags.get(tagged.WORKSPACE, "") for t in found if t.alive} - {gang.scope.workspace}
    if foreign:
        raise Held(
            f"cluster {gang.scope.cluster} has resources that {', '.join(sorted(foreign)) or 'nobody known'} made",
            hint="nexa teardown --cluster FILE ends them",
        )
    for thing in found:
        if thing.id in known and thing.row.get("StateReason", {}).get("Code", "").startswith("Server.SpotInstance"):
            gang.ctx.detail(f"{thing.id} ({thing.offer}) was taken back by the cloud")
            capacity.remember(gang.ctx, thing.offer, PREEMPTED)
    stray = {t.id for t in found if t.alive and t.kind not in ATTACHED and t.id not in known}
    _spare_the_whole(gang, stray)
    if stray:
        with gang.folder.journalled("reconcile", ended=sorted(stray)):
            gang.end(lambda thing: thing.id in stray)
    for line in dangling.take_off(found, known):
        gang.ctx.detail(f"{line}: taken off, since no state knows it")
    return {t.id for t in tagged.instances(found) if t.id in known}


def _spare_the_whole(gang: Gang, stray: set[str]) -> None:
    """A gang that was proven whole may be training: a state that was lost since is no reason to end it unasked."""
    if not gang.folder.json.exists():
        return
    living = sorted({node.instance_id for node in gang.folder.load().nodes} & stray)
    if living:
        raise NexaError(
            f"{', '.join(living)} of cluster {gang.scope.cluster} are alive, and Terraform's state does not know them",
            hint=f"put the state back ({gang.terraform.state}), or end the cluster: nexa teardown",
        )
