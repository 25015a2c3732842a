"""The journal, read: where the minutes went, and whether something was killed half way."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.ops.providers.aws.claim import interrupted
from nexa_dist.plan.timeline import timeline
from nexa_dist.run import files
from tests.unit.cloud_server import NOW, Desk

Records = list[dict[str, Any]]


def records(*steps: str) -> Records:
    """`claim` begins a step, `claim.` ends it, `claim!` fails; one second apart."""
    made: Records = []
    for second, step in enumerate(steps):
        record: dict[str, Any] = {"at": NOW + second, "step": step.rstrip(".!"), "state": "intent"}
        if step.endswith("."):
            record |= {"state": "done", "seconds": 1.0}
        elif step.endswith("!"):
            record |= {"state": "failed", "error": "NexaError: no"}
        else:
            record |= {"offer": f"offer of {step}"}
        made.append(record)
    return made


def brief(rows: Records) -> list[str]:
    return [f"{row['step']} {row['at_s']} {row['seconds']} {row['state']}" for row in rows]


@pytest.mark.parametrize(
    ("journal", "rows"),
    [
        (records(), []),
        (records("claim", "claim.", "create", "create!"), ["claim 0.0 1.0 done", "create 2.0 1.0 failed"]),
        (records("claim", "claim.", "create"), ["claim 0.0 1.0 done", "create 2.0 None killed"]),
        # Killed in a step within a step, then repeated.
        (
            records("boot", "create", "claim", "claim.", "boot", "boot."),
            ["boot 0.0 None killed", "create 1.0 None killed", "claim 2.0 1.0 done", "boot 4.0 1.0 done"],
        ),
        (records("boot", "create", "boot."), ["boot 0.0 2.0 done", "create 1.0 None killed"]),
        (records("claim."), []),
    ],
)
def test_a_journal_becomes_rows_of_steps(journal: Records, rows: list[str]) -> None:
    assert brief(timeline(journal)) == rows


def test_a_row_says_what_it_was_about_or_why_it_failed() -> None:
    assert [row["what"] for row in timeline(records("create", "create!", "create", "create."))] == [
        "NexaError: no",
        "offer of create",
    ]


@pytest.mark.parametrize(
    ("steps", "killed"),
    [
        ((), False),
        (("claim", "claim."), False),
        (("claim", "claim.", "create", "create."), False),
        (("claim", "claim.", "create"), True),
        (("create", "create!"), False),
        # What came after the kill, and made nothing, does not hide it.
        (("claim", "claim.", "create", "claim", "claim!"), True),
        (("create", "create.", "create", "stop", "stop."), True),
        (("sweep", "stop", "stop."), True),
        # A gang that was made whole since has been waited for and reconciled.
        (("create", "claim", "claim.", "create", "create."), False),
        (("boot", "create", "create."), False),
    ],
)
def test_a_provision_that_was_killed_is_seen_in_its_journal(desk: Desk, steps: tuple[str, ...], killed: bool) -> None:
    folder = desk.ctx.workspace.cluster("c")
    for record in records(*steps):
        files.append_json(folder.path / "journal.jsonl", record)
    with open(folder.path / "journal.jsonl", "a") if steps else open(desk.root / "none", "w") as journal:
        journal.write('{"at": 1, "st')  # killed while it wrote
    assert interrupted(folder) is killed


def test_a_step_that_raises_is_in_the_journal(desk: Desk) -> None:
    folder = desk.ctx.workspace.cluster("c")
    with pytest.raises(KeyboardInterrupt), folder.journalled("create", offer="x"):
        raise KeyboardInterrupt
    (row,) = timeline(files.read_lines(folder.path / "journal.jsonl"))
    assert row["state"] == "failed" and row["what"].startswith("KeyboardInterrupt")


def test_a_damaged_line_hides_no_other() -> None:
    whole = [{"at": 10.0, "step": "a", "state": "intent"}, {"at": 11.0, "step": "b", "state": "intent"}]
    odd = [{"at": None, "step": "c", "state": "intent"}, {"at": 1e400, "step": "c", "state": "done"}, {}, {"step": 5}]
    lost = [{"at": 12.0, "step": "its intent is lost", "state": "done"}]
    done = [{"at": 13.0, "step": "b", "state": "done"}, {"at": 14.0, "step": "a", "state": "done"}]
    rows = timeline([*odd, *whole, *lost, *done])
    assert [(row["step"], row["state"], row["seconds"]) for row in rows] == [("a", "done", 4.0), ("b", "done", 2.0)]
