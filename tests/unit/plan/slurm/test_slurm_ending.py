"""What the end of a job's step means, by what Slurm 22.05 was seen to say of the job then."""

from __future__ import annotations

import pytest

from nexa_dist.plan.slurm.ending import cause, never
from nexa_dist.run.slurm.commands import fields

RUNNING = {"JobState": "RUNNING", "Restarts": "0", "PreemptTime": "None"}


@pytest.mark.parametrize(
    ("job", "restarts", "noticed", "wanted"),
    [
        (RUNNING, 0, False, ""),
        (RUNNING, 0, True, "time limit"),
        ({**RUNNING, "Restarts": "1"}, 1, True, "time limit"),
        ({**RUNNING, "PreemptTime": "2026-11-29T09:25:13"}, 0, False, "preempted"),
        ({"JobState": "COMPLETING", "Restarts": "1"}, 0, True, "requeued"),
        ({"JobState": "PENDING", "Restarts": "2", "Reason": "Preempted"}, 1, False, "preempted"),
        ({"JobState": "COMPLETING", "Restarts": "0", "PreemptTime": "None"}, 0, True, "cancelled"),
        ({"JobState": "CANCELLED", "Restarts": "1"}, 1, False, "cancelled"),
        ({}, 0, False, ""),
        ({}, 0, True, "time limit"),
    ],
)
def test_the_cause(job: dict[str, str], restarts: int, noticed: bool, wanted: str) -> None:
    assert cause(job, restarts, noticed) == wanted


@pytest.mark.parametrize(
    ("reason", "ever"),
    [
        ("Job's account not known, so it can't use this partition (physics allows physics)", True),
        ("PartitionTimeLimit", True),
        ("InvalidQOS", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("Resources", False),
        ("Priority", False),
        ("JobArrayTaskLimit", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("None", False),
    ],
)
def test_what_would_wait_for_ever(reason: str, ever: bool) -> None:
    assert never("PENDING", reason) is ever
    assert not never("RUNNING", reason)


def test_fields_of_a_record() -> None:
    assert fields("JobId=7 JobState=RUNNING Reason=None Command=/a b=c=d x") == {
        "JobId": "7", "JobState": "RUNNING", "Reason": "None", "Command": "/a", "b": "c=d",
    }  # fmt: skip
