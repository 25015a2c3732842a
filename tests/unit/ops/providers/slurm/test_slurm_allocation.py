"""What is found of an allocation after any interruption, by what squeue says of jobs of its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.errors import NexaError, NoNodes, StillRunning
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.slurm import provider
from nexa_dist.ops.providers.slurm.allocation import Allocation, Record
from nexa_dist.ops.providers.slurm.make import _refuse_ended
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.runner import Result
from nexa_dist.run.workspace import Workspace

CLUSTER = Cluster("lab", "slurm", (Node("n0", "10.0.0.1", 2, instance_id="h0@7"),), Layout("p", "s", "s", "d"))


def allocation(root: Path, runner: FakeRunner, record: Record | None = None) -> Allocation:
    """Of a workspace whose clock goes a second a sleep."""
    clock = [1000.0]
    ctx = Context(
        Workspace(root), runner, lambda _: None, now=lambda: clock[0],
        sleep=lambda seconds: clock.__setitem__(0, clock[0] + seconds),
    )  # fmt: skip
    folder = ctx.workspace.cluster("lab")
    folder.path.mkdir(parents=True)
    if record:
        record.save(folder)
    return Allocation(ctx, folder)


def answer(text: str = "", code: int = 0, err: str = "") -> Result:
    return Result(("x",), code, text.encode(), err.encode())


def words(runner: FakeRunner) -> list[str]:
    return [" ".join(call.argv) for call in runner.calls if call.argv[0] == "scancel"]


def test_a_job_whose_number_nobody_heard_is_found_by_its_token_and_strays_are_cancelled(tmp_path: Path) -> None:
    runner = FakeRunner(answer("8|PENDING|N/A||old|None\n9|PENDING|N/A||mine|None\n"), otherwise=answer())
    made = allocation(tmp_path, runner, Record("mine"))
    job = made.found()
    assert job is not None and job.number == "9" == Record.of(made.folder).job
    assert words(runner) == ["scancel 8"]


def test_nothing_is_found_where_there_is_nothing_and_silence_is_no_answer(tmp_path: Path) -> None:
    made = allocation(tmp_path, FakeRunner(answer(), answer("", 1, "slurm_load_jobs error: Unable to contact")))
    assert made.found() is None
    with pytest.raises(NexaError, match="Unable to contact"):
        made.found()


def test_an_end_waits_until_squeue_has_nothing_and_says_what_does_not_go(tmp_path: Path) -> None:
    row = "9|COMPLETING|N/A|h0|mine|None\n"
    runner = FakeRunner(answer(row.replace("COMPLETING", "RUNNING")), answer(), answer(row), answer())
    made = allocation(tmp_path, runner, Record("mine", job="9"))
    assert made.end() == ["9"]
    assert Record.of(made.folder).ours
    assert words(runner) == ["scancel 9"], "once"
    stuck = allocation(tmp_path / "b", FakeRunner(otherwise=answer(row)), Record("mine", job="9"))
    with pytest.raises(StillRunning, match="job 9 is COMPLETING on h0"):
        stuck.end()


def test_a_teardown_that_slurm_does_not_answer_is_no_proof(tmp_path: Path) -> None:
    made = allocation(tmp_path, FakeRunner(otherwise=answer("", 1, "Unable to contact slurm controller")))
    with pytest.raises(StillRunning, match="not proven gone"):
        provider.destroy(made.ctx, made.folder)


@pytest.mark.parametrize(
    ("queue", "job", "word", "says"),
    [
        ("7|RUNNING|N/A|h0|t|None\n", "", "runs", "job 7 is RUNNING"),
        ("7|COMPLETING|N/A|h0|t|None\n", "", "unwell", "job 7 is COMPLETING"),
        ("", "JobId=7 JobState=PREEMPTED Reason=None", "off", "job 7 is PREEMPTED"),
        ("8|RUNNING|N/A|h0|t|None\n", "JobState=NODE_FAIL Reason=x", "off", "job 7 is NODE_FAIL (x)"),
        ("", "", "off", "job 7 is gone"),
    ],
)
def test_the_job_says_whether_a_node_lives(tmp_path: Path, queue: str, job: str, word: str, says: str) -> None:
    made = allocation(tmp_path, FakeRunner(answer(queue), answer(job)))
    assert provider.says(made.ctx, CLUSTER, CLUSTER.nodes[0]) == (word, says)


@pytest.mark.parametrize(("state", "ours", "refused"), [
    ("CANCELLED", False, True), ("CANCELLED", True, False), ("PREEMPTED", False, False), ("TIMEOUT", False, False),
])  # fmt: skip
def test_what_somebody_cancelled_is_not_asked_for_again(tmp_path: Path, state: str, ours: bool, refused: bool) -> None:
    going = answer("7|COMPLETING|N/A|h0|t|None\n")
    made = allocation(
        tmp_path, FakeRunner(going, answer(), answer(f"JobState={state}")), Record("t", job="7", ours=ours)
    )
    if not refused:
        _refuse_ended(made)
        return
    with pytest.raises(NoNodes, match="job 7 was cancelled"):
        _refuse_ended(made)
