"""Ends what `tagged` finds, in the order of dependence, and names what of others' is in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.run.aws import strangers
from nexa_dist.run.aws.client import Refused, client, spoken
from nexa_dist.run.aws.tagged import IAM, KINDS, TaggedResource

ROUNDS = 60
PAUSE_S = 3.0
ENDING = frozenset({"shutting-down", "deleting"})


def _end_profile(iam: Any, thing: TaggedResource) -> None:
    if thing.kind == "instance profile":
        for role in thing.row.get("Roles", ()):
            iam.remove_role_from_instance_profile(InstanceProfileName=thing.id, RoleName=role["RoleName"])
        iam.delete_instance_profile(InstanceProfileName=thing.id)
        return
    for name in iam.list_role_policies(RoleName=thing.id)["PolicyNames"]:
        iam.delete_role_policy(RoleName=thing.id, PolicyName=name)
    for policy in iam.list_attached_role_policies(RoleName=thing.id)["AttachedPolicies"]:
        iam.detach_role_policy(RoleName=thing.id, PolicyArn=policy["PolicyArn"])
    iam.delete_role(RoleName=thing.id)


def end(thing: TaggedResource) -> str:
    """Ends one thing. Answers why not, in the cloud's words; empty when it is gone or going."""
    service = "iam" if thing.kind in IAM else "ec2"
    made = client(service, thing.region)
    try:
        with spoken(f"ending {thing.kind} {thing.id}"):
            if service == "iam":
                _end_profile(made, thing)
            else:
                next(kind for kind in KINDS if kind.name == thing.kind).end(made, thing.id, thing.row)
    except Refused as error:
        if "NotFound" in error.reason or error.reason in ("InvalidPlacementGroup.Unknown", "NoSuchEntity"):
            return ""
        return str(error)
    return ""


def sweep(
    look: Callable[[], list[TaggedResource]],
    say: Callable[[str], None],
    sleep: Callable[[float], None],
    rounds: int = ROUNDS,
) -> tuple[list[TaggedResource], list[str]]:
    """Ends all that `look` finds, in the order of dependence, and looks again until nothing is alive.

    What others' resources hold is left, and they are named at once. Answers what it ended, and why the rest (if any)
    could not be. Bounded by `rounds`.
    """
    ended: dict[tuple[str, str], TaggedResource] = {}
    errors: dict[tuple[str, str], str] = {}
    held: dict[str, list[str]] = {}
    told: set[str] = set()
    for count in range(rounds):
        alive = [thing for thing in look() if thing.alive]
        if not alive:
            return list(ended.values()), []
        if count:
            sleep(PAUSE_S)
        errors = {}
        # While an instance lives, what it uses cannot go.
        machines = [thing for thing in alive if thing.kind in ("instance", "spot request")]
        before, held = held, {} if machines else _held(alive, say, told)
        todo = machines or alive
        for thing in todo:
            if thing.state not in ENDING:
                why = end(thing)
                if why:
                    errors[thing.key] = why
                if thing.key not in ended:
                    say(f"{thing.kind} {thing.id} {thing.offer}: " + (why or "ending"))
                ended[thing.key] = thing
        stuck = held.keys() & before.keys()  # seen twice: what goes away by itself is no stranger
        if all(thing.id in stuck or _denied(errors.get(thing.key, "")) for thing in todo):
            break  # asking again gives no permission, and what is held waits for somebody else
    left = [thing for thing in look() if thing.alive]
    whys = [held.get(t.id) or [errors.get(t.key, f"{t.kind} {t.id} is still {t.state}")] for t in left]
    return list(ended.values()), list(dict.fromkeys(why for several in whys for why in several))


def _held(alive: list[TaggedResource], say: Callable[[str], None], told: set[str]) -> dict[str, list[str]]:
    """Resources of ours that cannot go, and who holds them; each is said once."""
    held: dict[str, list[str]] = {}
    try:
        held = strangers.holding(found := strangers.find(alive))
        lines = [f"in the way: {stranger}" for stranger in found]
    except NexaError as error:  # the cloud's own word for what it refuses has to do
        lines = [f"nobody looked for what is in the way: {error}"]
    for line in lines:
        if line not in told:
            told.add(line)
            say(line)
    return held


def _denied(why: str) -> bool:
    return any(code in why for code in ("UnauthorizedOperation", "AccessDenied", "AuthFailure"))
