"""The nemesis's checker must find what is wrong in made records, and nothing in a good one."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos import plans, procs
from tests.chaos.check import faults_found
from tests.chaos.record import HOST_FAULTS, Act, Fault, Kind, Sample, Seen
from tests.chaos.sampler import beside

WEIGHTS, OTHER = "a" * 64, "b" * 64


def attempt(number: int, state: str, began: float, ended: float, cause: str, resume: int | None) -> dict[str, Any]:
    return {
        "attempt": number, "state": state, "started_unix": began, "ended_unix": ended, "cause": cause,
        "resume_step": resume,
    }  # fmt: skip


def good(kind: Kind = "kill_rank", cause: str = "rank 0 on n0: signal 9", reached: int = 23, resume: int = 20) -> Seen:
    """A run of 60 steps with one fault at second 110, that went on from `resume` and completed."""
    attempts = [
        attempt(1, "failed", 100.0, 111.0, cause, None),
        attempt(2, "completed", 120.0, 150.0, "", resume),
    ]
    return Seen(
        seed=1,
        steps=60,
        save_every=5,
        weights=WEIGHTS,
        acts=(Act(Fault(kind, 20), 110.0, reached, 110.0),),
        exit_code=0,
        record={"attempts": attempts},
        manifest={
            "status": "completed",
            "attempts": [dict(row) for row in attempts],
            "checkpoint": {"step": 60, "sha256": "c"},
        },
        result={"weights_sha256": WEIGHTS},
        final_weights=(WEIGHTS,),
        checkpoint={"step": 60, "sha256": "c", "problems": []},
        samples=(
            Sample(105.0, {1: ("n0", "n1")}, {1: 10}),
            Sample(110.0, {1: ("n0", "n1")}, {1: reached}),
            Sample(115.0, {}, {1: reached}),
            Sample(130.0, {2: ("n0", "n1")}, {1: reached, 2: 30}),
        ),
        left={"n0": (), "n1": ()},
        instances=(("n0", "i-1"), ("n1", "i-2")),
        nodes=("n0", "n1"),
        ended_unix=151.0,
    )


def with_attempt(seen: Seen, index: int, **changed: Any) -> Seen:
    """run.json and manifest say the same other thing."""
    rows = [{**row, **changed} if number == index else row for number, row in enumerate(seen.record["attempts"])]
    assert seen.manifest is not None
    return replace(seen, record={"attempts": rows}, manifest={**seen.manifest, "attempts": rows})


def test_a_good_record_has_no_fault() -> None:
    assert faults_found(good()) == []
    notice = good("notice", "spot notice for n1", reached=23, resume=23)
    assert faults_found(notice) == []
    assert faults_found(good("flip_bit", reached=24, resume=15)) == []


def test_what_was_not_uploaded_goes_with_the_machine_of_rank_0_and_no_other() -> None:
    hurt = good("kill_host", "node n0: no word", reached=27, resume=20)
    behind = replace(hurt, samples=tuple(replace(sample, lag=5) for sample in hurt.samples))
    assert faults_found(behind) == []
    other = replace(behind, acts=(replace(behind.acts[0], fault=Fault("kill_host", 20, "n1")),))
    assert any("7 steps lost, 5 are allowed" in fault for fault in faults_found(other))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (replace(good(), exit_code=1), "the controller answered 1"),
        (replace(good(), exit_code=None), "did not end in its time"),
        (with_attempt(good(), 1, state="failed"), "run.json says failed"),
        (replace(good(), final_weights=()), "no final weights"),
        (replace(good(), final_weights=(WEIGHTS, OTHER)), "are not those of an unbroken run"),
        (replace(good(), result={"weights_sha256": OTHER}), "result.json does not hold"),
        (good(reached=26, resume=20), "6 steps lost, 5 are allowed"),
        (good("notice", "spot notice", reached=21, resume=20), "1 steps lost, 0 are allowed"),
        (good("flip_bit", reached=31, resume=20), "11 steps lost, 10 are allowed"),
        (replace(good(), acts=()), "nothing had been done to it"),
        (good(cause="the moon"), "does not name ['kill_rank']"),
        (replace(good(), acts=(*good().acts, Act(Fault("kill_agent", 50), 140.0, 50, 140.0))), "ended no attempt"),
        (replace(good(), manifest=None), "no manifest"),
        (replace(good(), manifest={**(good().manifest or {}), "status": "failed"}), "the manifest says failed"),
        (replace(good(), manifest={**(good().manifest or {}), "attempts": []}), "are not those of run.json"),
        (with_attempt(good(), 1, attempt=3), "not numbered from 1"),
        (with_attempt(good(), 0, cause=""), "says no cause"),
        (with_attempt(good(), 1, started_unix=105.0), "began before attempt 1 had ended"),
        (replace(good(), manifest={**(good().manifest or {}), "checkpoint": None}), "is of step None"),
        (replace(good(), checkpoint={"step": 60, "sha256": "d", "problems": []}), "on the disk is d"),
        (replace(good(), checkpoint={"step": 60, "sha256": "c", "problems": ["x: 3 bytes"]}), "x: 3 bytes"),
        (replace(good(), checkpoint=None), "no checkpoint"),
        (replace(good(), left={"n0": ("7 python train.py",), "n1": ()}), "1 processes of the run are left on n0"),
        (replace(good(), instances=(("n0", "i-1"), ("n1", "i-2"), ("n1", "i-3"))), "the cloud bills"),
        (replace(good(), instances=(("n0", "i-1"),)), "the cloud bills"),
        (replace(good(), leaks=("runs/x/run.json",)), "a secret is in runs/x/run.json"),
    ],
)  # fmt: skip
def test_each_wrong_record_is_found(seen: Seen, expected: str) -> None:
    assert any(expected in fault for fault in faults_found(seen)), faults_found(seen)


@pytest.mark.parametrize(
    "late",
    [
        Sample(131.0, {1: ("n1",), 2: ("n0",)}),
        Sample(131.0, {1: ("n1",)}),
    ],
)
def test_an_old_generation_is_found_beside_and_after_a_newer_one(late: Sample) -> None:
    seen = replace(good(), samples=(*good().samples, late))
    assert any("attempts [1] lived beside or after attempt 2" in fault for fault in faults_found(seen))


def test_an_older_rank_that_ended_before_the_newer_was_seen_did_not_live_beside_it() -> None:
    me = procs.look(os.getpid())
    assert me is not None
    gone = replace(me, started_ticks=me.started_ticks - 1)
    assert beside([(1, "n0", gone), (2, "n1", me)]) == {2: ("n1",)}
    assert beside([(1, "n0", me), (1, "n0", gone), (2, "n1", me)]) == {1: ("n0",), 2: ("n1",)}
    assert beside([]) == {}


def test_a_seed_is_a_plan_and_all_seeds_together_are_all_faults() -> None:
    kinds = plans.kinds_for(local=False)
    made = [plans.plan(seed, 60, kinds) for seed in range(1, 40)]
    assert made == [plans.plan(seed, 60, kinds) for seed in range(1, 40)]
    assert {fault.kind for plan in made for fault in plan} == set(kinds)
    assert all(1 <= len(plan) <= plans.MOST for plan in made)
    assert all(sum(fault.after_s > 0 for fault in plan) <= 1 for plan in made)  # else the policy gives up, rightly
    assert {plan[0].kind for plan in made[: len(kinds)]} == set(kinds)


def test_a_local_cluster_has_no_host_faults() -> None:
    assert not set(plans.kinds_for(local=True)) & HOST_FAULTS
    with pytest.raises(ValueError, match="no such fault here: kill_host"):
        plans.kinds_for(local=True, wanted=["kill_host"])
