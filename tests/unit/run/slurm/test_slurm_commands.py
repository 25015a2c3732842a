"""Slurm's commands: what is asked, and what is made of their answers and refusals."""

from __future__ import annotations

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.runner import Result
from nexa_dist.run.slurm.commands import Job, Slurm, Unreachable


def said(out: str = "", err: str = "", code: int = 0) -> Result:
    return Result((), code, out.encode(), err.encode())


def test_a_script_becomes_a_job_and_secrets_go_by_the_environment() -> None:
    runner = FakeRunner(said("17;cluster\n"))
    assert Slurm(runner).submit("#!/bin/bash\n", {"HF_TOKEN": "s3cret"}) == "17"
    (call,) = runner.calls
    assert call.argv == ("sbatch", "--parsable")
    assert (call.stdin, call.how["env"]) == (b"#!/bin/bash\n", {"HF_TOKEN": "s3cret"})


@pytest.mark.parametrize(
    ("err", "hint"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         "slurm.account"),
        ("sbatch: error: invalid partition specified: nosuch", "sinfo lists the partitions"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "no node of the"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller", "scontrol ping"),
        ("sbatch: error: something else", ""),
    ],
)  # fmt: skip
def test_a_refusal_is_slurms_own_sentence_with_what_to_do(err: str, hint: str) -> None:
    with pytest.raises(NexaError) as refused:
        Slurm(FakeRunner(said(err=err, code=1))).submit("x")
    assert err.rpartition("error: ")[2] in str(refused.value)
    assert hint in refused.value.hint
    assert bool(hint) == bool(refused.value.hint)


def test_without_slurm_it_is_said() -> None:
    with pytest.raises(NexaError, match="there is no sbatch here"):
        Slurm(FakeRunner(said(code=127))).submit("x")


def test_where_its_programs_find_no_cluster_nobody_can_be_asked() -> None:
    err = "sbatch: fetch_config: DNS SRV lookup failed\nfatal: Could not establish a configuration source\n"
    with pytest.raises(Unreachable, match="finds no slurm"):
        Slurm(FakeRunner(said(err=err, code=1))).submit("x", test=True)


def test_an_answer_that_is_no_job_is_refused() -> None:
    with pytest.raises(NexaError, match="which is no job"):
        Slurm(FakeRunner(said("hello"))).submit("x")


@pytest.mark.parametrize(
    ("out", "wanted"),
    [
        (
            "8|RUNNING|2026-01-01T00:00:00|n[0-1]|(null)|None\n",
            Job("8", "RUNNING", "2026-01-01T00:00:00", "n[0-1]", "(null)", "None"),
        ),
        (
            "7|PENDING|N/A||a1b2|(Resources|x)\n8|RUNNING|x|n0||None\n",
            Job("7", "PENDING", "", "", "a1b2", "(Resources|x)"),
        ),
        ("whatever\n", None),
        ("", None),
    ],
)
def test_how_a_job_stands(out: str, wanted: Job | None) -> None:
    assert Slurm(FakeRunner(said(out))).waiting("17") == wanted


def test_why_a_job_waits_and_until_when_in_words() -> None:
    assert Job("7", "PENDING", "", "", "a1b2", "(Resources|x)").waits == "job 7 waits ((Resources|x))"
    assert "to begin at 2026" in Job("8", "PENDING", "2026-01-01T00:00:00", "", "", "None").waits


def test_a_job_is_gone_only_by_slurms_word() -> None:
    unknown = said(err="slurm_load_jobs error: Invalid job id specified", code=1)
    assert Slurm(FakeRunner(unknown)).waiting("17") is None
    down = said(err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)", code=1)
    with pytest.raises(NexaError, match=r"squeue: .*Unable to contact") as refused:
        Slurm(FakeRunner(down)).waiting("17")
    assert refused.value.hint == "is slurmctld up? scontrol ping"


def test_a_job_that_slurm_does_not_know_has_no_fields() -> None:
    assert Slurm(FakeRunner(said(err="Invalid job id specified", code=1))).job("17") == {}
    assert Slurm(FakeRunner(said("JobId=17 JobState=RUNNING\nmore=1\n"))).job("17")["JobState"] == "RUNNING"


def test_the_nodes_and_their_addresses() -> None:
    assert Slurm(FakeRunner(said("n0\nn1\n"))).nodes("n[0-1]") == ["n0", "n1"]
    assert Slurm(FakeRunner(said("NodeName=n0 NodeAddr=10.0.0.1"))).address("n0") == "10.0.0.1"
    assert Slurm(FakeRunner(said("NodeName=n0"))).address("n0") == "n0"
    with pytest.raises(NexaError, match="makes no names"):
        Slurm(FakeRunner(said("-x\n"))).nodes("-x")
