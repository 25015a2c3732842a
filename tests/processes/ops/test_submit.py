"""A job that Slurm has is never left without its run, whatever happens after sbatch has answered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.slurm import stop
from nexa_dist.ops.slurm.submit import Submitted, submit
from nexa_dist.run import files, trust
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import RunFolder, Workspace

CONFIG = TrainConfig.model_validate({"script": "a.py", "name": "a", "slurm": {"gres": "gpu:1"}})
DOWN = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
NEVER = "echo '17|PENDING|N/A|||PartitionNodeLimit'"


class Site:
    """A workspace, and programs in place of Slurm's."""

    def __init__(self, root: Path, bin_: Path) -> None:
        self.said, self.bin = list[str](), bin_
        trust.claim(root)
        (root / "a.py").write_text("")
        self.ctx = Context(Workspace(root, str(root)), Runner(), self.said.append)
        self.program("sbatch", "cat >/dev/null; echo 17")
        self.program("scancel", f"echo $* >{bin_}/cancelled")

    def program(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def submit(self) -> Submitted:
        return submit(self.ctx, [CONFIG], None, [{}], "train.yaml")

    def runs(self) -> list[Path]:
        return sorted(self.ctx.workspace.root.glob("runs/train_*"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "root").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return Site(tmp_path / "root", tmp_path / "bin")


def test_a_squeue_that_does_not_answer_takes_no_run_from_its_job(site: Site) -> None:
    site.program("squeue", DOWN)
    made = site.submit()
    assert (made.number, made.waiting) == ("17", None)
    assert "Unable to contact slurm controller" in site.said[-1]
    (run,) = site.runs()
    assert files.read_object(run / "slurm" / "job.json")["job"] == "17"
    with pytest.raises(NexaError, match="Unable to contact"):  # it may go on, so it is not written down as stopped
        stop.stop(site.ctx, RunFolder(run))


def test_ctrl_c_while_it_is_looked_at_names_the_job_and_keeps_its_run(site: Site) -> None:
    site.program("squeue", "echo '17|PENDING|N/A|||None'")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    site.ctx = dataclasses.replace(site.ctx, sleep=interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.submit()
    assert len(site.runs()) == 1
    assert site.said[-1] == "job 17 is in the queue all the same: scancel 17 ends it"


def test_what_would_never_start_is_cancelled_and_leaves_no_run(site: Site) -> None:
    site.program("squeue", NEVER)
    with pytest.raises(NexaError, match="would never start job 17"):
        site.submit()
    assert (site.bin / "cancelled").read_text() == "17\n"
    assert site.runs() == []


def test_a_run_whose_job_nobody_wrote_down_says_how_to_find_it(site: Site) -> None:
    site.program("squeue", "echo '17|RUNNING|N/A|||None'")
    site.submit()
    (run,) = site.runs()
    told = files.read_object(run / "slurm" / "job.json")
    files.write_json(run / "slurm" / "job.json", {key: value for key, value in told.items() if key != "job"})
    with pytest.raises(NexaError) as refused:
        stop.stop(site.ctx, RunFolder(run))
    assert refused.value.hint == "squeue --me --name=nexa-a, then scancel"
