"""The one checker of the nemesis: every way in which a run that was hurt may not have gone on. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.chaos.record import CAUSES, ENDS, Act, Kind, Seen

DISK_LOST: frozenset[Kind] = frozenset(("kill_host", "reclaim", "cut_long"))
LAST_WORD_S = 3.0
"""What was told so shortly before a machine's end is what was true at its end."""
LINGERS_S = 90.0
"""After a fault was over, what it brought about may still be ended: a cut host's ranks time out."""


def faults_found(seen: Seen) -> list[str]:
    """Everything that is wrong, in words; nothing for a run that survived."""
    if seen.exit_code is None:
        return ["the run did not end in its time", *left_behind(seen), *generations(seen)]
    checks = (ended_well, same_weights, steps_lost, attempts_explained, manifest_true, checkpoint_whole, left_behind,
              generations, cloud_books, secrets)  # fmt: skip
    return [fault for check in checks for fault in check(seen)]


def attempts_of(seen: Seen) -> list[Mapping[str, Any]]:
    return list(seen.record.get("attempts", []))


def ended_well(seen: Seen) -> Iterator[str]:
    """Every fault of a plan can be recovered from within the policy, so the run has to complete."""
    attempts = attempts_of(seen)
    state = attempts[-1].get("state") if attempts else "no attempt"
    if seen.exit_code != 0:
        yield f"the controller answered {seen.exit_code}, not 0"
    if state != "completed":
        yield f"run.json says {state}, not completed"


def same_weights(seen: Seen) -> Iterator[str]:
    if not seen.final_weights:
        yield "rank 0 told no final weights"
    if wrong := {found for found in seen.final_weights if found != seen.weights}:
        yield f"final weights {', '.join(sorted(wrong))} are not those of an unbroken run, {seen.weights}"
    if seen.result is not None and seen.weights not in str(dict(seen.result)):
        yield "result.json does not hold the weights of an unbroken run"


def reached(seen: Seen, attempt: int) -> int | None:
    """The highest step that was seen of an attempt."""
    return max((sample.steps[attempt] for sample in seen.samples if attempt in sample.steps), default=None)


def hits(seen: Seen, attempt: Mapping[str, Any], kinds: frozenset[Any] | None = None) -> list[Act]:
    """Faults that acted while an attempt ran (or what they did may have ended it)."""
    began, ended = float(attempt["started_unix"]), float(attempt.get("ended_unix") or seen.ended_unix)
    return [
        act
        for act in seen.acts
        if act.applied
        and (kinds is None or act.fault.kind in kinds)
        and act.at_unix <= ended
        and act.until_unix + LINGERS_S * (act.until_unix > act.at_unix) >= began
    ]


def allowed(seen: Seen, acts: Sequence[Act]) -> int:
    """Steps that may be lost at most: one interval; two when the newest checkpoint was damaged; none after a notice
    alone; and while the disk was full there was nothing to go back to. With rank 0's machine goes what was saved and
    not yet uploaded."""
    kinds = {act.fault.kind for act in acts}
    if kinds == {"notice"}:
        return 0
    if "fill_disk" in kinds:
        return seen.steps
    late = 0
    for act in acts:
        if act.fault.kind in DISK_LOST and act.fault.node == "n0":
            late = max(
                [late, *(sample.lag for sample in seen.samples if abs(sample.at_unix - act.at_unix) < LAST_WORD_S)]
            )
    return seen.save_every * (2 if "flip_bit" in kinds else 1) + late


def steps_lost(seen: Seen) -> Iterator[str]:
    attempts = attempts_of(seen)
    for before, after in itertools.pairwise(attempts):
        last = reached(seen, int(before["attempt"]))
        if last is None:
            continue
        lost, most = last - int(after.get("resume_step") or 0), allowed(seen, hits(seen, before))
        if lost > most:
            yield (
                f"attempt {before['attempt']} reached step {last}, attempt {after['attempt']} went on from "
                f"{after.get('resume_step')}: {lost} steps lost, {most} are allowed"
            )


def attempts_explained(seen: Seen) -> Iterator[str]:
    """No attempt ends unhurt, no fault that ends attempts is without its end, and each cause names its fault."""
    attempts = attempts_of(seen)
    for attempt in attempts[:-1]:
        acts = hits(seen, attempt)
        if not acts:
            yield f"attempt {attempt['attempt']} ended ({attempt.get('cause')!r}) and nothing had been done to it"
        kinds = {act.fault.kind for act in acts}
        words = {word for kind in kinds & CAUSES.keys() for word in CAUSES[kind]}
        cause = str(attempt.get("cause") or "").lower()
        if kinds <= CAUSES.keys() and words and not any(word in cause for word in words):
            yield f"attempt {attempt['attempt']}: the cause {attempt.get('cause')!r} does not name {sorted(kinds)}"
    for act in seen.acts:
        if (
            act.applied
            and act.step < seen.steps  # at the last one the training may be over, and nobody was hurt
            and act.fault.kind in ENDS
            and not any(
                float(attempt["started_unix"]) <= act.until_unix + LINGERS_S
                and float(attempt.get("ended_unix") or seen.ended_unix) >= act.at_unix - 1
                and attempt.get("state") != "completed"
                for attempt in attempts
            )
        ):
            yield f"{act.fault.kind} at step {act.step} ended no attempt"


def manifest_true(seen: Seen) -> Iterator[str]:
    """The manifest says what run.json, the disk and this rig know."""
    attempts, manifest = attempts_of(seen), seen.manifest
    if manifest is None:
        yield "there is no manifest"
        return
    if manifest["status"] != "completed":
        yield f"the manifest says {manifest['status']}"
    told = [(row["attempt"], row["state"], row["cause"], row["resume_step"]) for row in manifest["attempts"]]
    kept = [(row["attempt"], row["state"], row.get("cause") or "", row.get("resume_step")) for row in attempts]
    if told != kept:
        yield f"the manifest's attempts {told} are not those of run.json {kept}"
    if [row[0] for row in told] != list(range(1, len(told) + 1)):
        yield f"attempts are not numbered from 1: {[row[0] for row in told]}"
    if blank := [row[0] for row in told[:-1] if not row[2]]:
        yield f"attempts {blank} ended and the manifest says no cause"
    for before, after in itertools.pairwise(manifest["attempts"]):
        if after["started_unix"] < before["ended_unix"]:
            yield f"attempt {after['attempt']} began before attempt {before['attempt']} had ended"
    checkpoint = manifest.get("checkpoint") or {}
    if checkpoint.get("step") != seen.steps:
        yield f"the manifest's checkpoint is of step {checkpoint.get('step')}, not {seen.steps}"
    if seen.checkpoint and checkpoint.get("sha256") != seen.checkpoint.get("sha256"):
        yield f"the manifest's checkpoint is {checkpoint.get('sha256')}, on the disk is {seen.checkpoint.get('sha256')}"


def taken_at_the_end(seen: Seen) -> set[str]:
    """Nodes that were taken once the last step was done: nobody needs them, so none comes in their place."""
    return {act.fault.node for act in seen.acts if act.fault.kind in DISK_LOST and act.step >= seen.steps}


def checkpoint_whole(seen: Seen) -> Iterator[str]:
    if "n0" in taken_at_the_end(seen):
        return  # the manifest's is the bucket's then
    if seen.checkpoint is None:
        yield "rank 0's host has no checkpoint"
    elif seen.checkpoint["problems"] or seen.checkpoint["step"] != seen.steps:
        yield f"the newest checkpoint is of step {seen.checkpoint['step']}: {seen.checkpoint['problems']}"


def left_behind(seen: Seen) -> Iterator[str]:
    for host, commands in seen.left.items():
        if commands:
            yield f"{len(commands)} processes of the run are left on {host}: {'; '.join(commands)[:300]}"


def generations(seen: Seen) -> Iterator[str]:
    """Never two attempts with ranks at once on hosts that can be reached, and never an older one again."""
    newest = 0
    for sample in seen.samples:
        alive = sorted(attempt for attempt, hosts in sample.ranks.items() if hosts)
        newest = max([newest, *alive])
        if old := [attempt for attempt in alive if attempt < newest]:
            where = {attempt: list(sample.ranks[attempt]) for attempt in alive}
            yield f"at {sample.at_unix:.1f} ranks of attempts {old} lived beside or after attempt {newest}: {where}"
            return


def cloud_books(seen: Seen) -> Iterator[str]:
    if not seen.instances and not seen.nodes:
        return
    found = sorted(node for node, _ in seen.instances)
    if found != sorted(seen.nodes) and found != sorted(set(seen.nodes) - taken_at_the_end(seen)):
        yield f"the cloud bills {list(seen.instances)}, the cluster is {list(seen.nodes)}"


def secrets(seen: Seen) -> Iterator[str]:
    for place in seen.leaks:
        yield f"a secret is in {place}"
