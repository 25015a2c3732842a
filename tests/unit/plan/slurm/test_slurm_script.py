"""The batch script of a job, by what it asks for and what it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.plan.slurm.array import Array
from nexa_dist.plan.slurm.bill import bill
from nexa_dist.plan.slurm.script import AGAIN, Job, options, script

PLAIN = Job("nexa-lm", SlurmConfig(nodes=2, gres="gpu:4", time="12:00:00"), ("/w/runs/r0",), None, "/w/code/0f",
            "/opt/py/bin/python", "/w/agent/agent.pyz", "/w/runs/r0/slurm/job.out", ("HOME", "HF_TOKEN"))  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"partition": "gpu,debug"}, "--partition=gpu,debug"),
        ({"account": "lab-7"}, "--account=lab-7"),
        ({"qos": "high"}, "--qos=high"),
        ({"constraint": "[h100*2|a100*2]"}, "--constraint=[h100*2|a100*2]"),
        ({"exclude": "n[01-03]"}, "--exclude=n[01-03]"),
        ({"cpus_per_node": 32}, "--cpus-per-task=32"),
        ({"mem": "64G"}, "--mem=64G"),
        ({"exclusive": True}, "--exclusive"),
        ({"notice_s": 90}, "--signal=B:TERM@90"),
        ({"options": ("--mail-type=END",)}, "--mail-type=END"),
    ],
)
def test_each_key_is_an_option(asked: dict[str, Any], wanted: str) -> None:
    job = replace(PLAIN, slurm=SlurmConfig(**asked))
    assert wanted in options(job)
    assert wanted not in options(replace(PLAIN, slurm=SlurmConfig()))


def test_what_a_job_without_wishes_asks_for() -> None:
    assert options(replace(PLAIN, slurm=SlurmConfig(), exported=())) == [
        "--job-name=nexa-lm", "--nodes=1", "--ntasks-per-node=1", "--requeue", "--signal=B:TERM@180",
        "--open-mode=append", "--output=/w/runs/r0/slurm/job.out", "--export=NIL",
    ]  # fmt: skip


def test_secrets_are_there_by_name_alone_and_the_users_lines_come_first() -> None:
    text = script(replace(PLAIN, slurm=SlurmConfig(shell=("module load cuda/12.8",))))
    assert "#SBATCH --export=HOME,HF_TOKEN\n" in text
    assert text.index("module load cuda/12.8\n") < text.index("job begin")
    assert f'[ "$code" = {AGAIN} ] || exit "$code"' in text


def test_each_element_of_an_array_has_its_run() -> None:
    text = script(replace(PLAIN, runs=("/w/runs/r0", "/w/runs/r1"), array=Array((1, 4), 1)))
    assert "#SBATCH --array=1,4%1\n" in text
    assert "runs=([1]=/w/runs/r0 [4]=/w/runs/r1)\nrun=${runs[$SLURM_ARRAY_TASK_ID]}\n" in text


@pytest.mark.parametrize(
    ("slurm", "elements", "hours", "usd", "words"),
    [
        (SlurmConfig(nodes=2, time="12:00:00"), 1, 96.0, None, "8 ranks for at most 96.00 GPU-hours; slurm.usd_per"),
        (SlurmConfig(nodes=2, time=90, usd_per_gpu_hour=2.5), 4, 48.0, 120.0,  # type: ignore[arg-type]
         "4 × 8 ranks for at most 48.00 GPU-hours, 120.00 USD"),
        (SlurmConfig(usd_per_gpu_hour=2.5), 1, None, None, "4 ranks for as long as the partition allows"),
    ],
)  # fmt: skip
def test_the_bill(slurm: SlurmConfig, elements: int, hours: float | None, usd: float | None, words: str) -> None:
    made = bill(slurm, 4, elements)
    assert (made.gpu_hours, made.usd) == (hours, usd)
    assert made.words.startswith(words)
