"""Clusters that are the allocation of a job of a real Slurm: made, preempted, cancelled, refused, given back.

Two slurmd on this machine (tests/slurm.py). The nodes' sshds are the job's own, and end with it.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import REPO, Lab, everything_of, until
from tests.e2e.test_slurm import unbroken, urgent_job
from tests.slurm import Slurm, missing, slurm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.long("a Slurm of its own, allocations, and runs that are preempted"),
]
FILE = """\
name: lab
provider: slurm
nodes: 2
gpus_per_node: 2
slurm: {partition: day, gres: "gpu:2", time: 50, usd_per_gpu_hour: 2.5}
"""


@dataclass(frozen=True)
class Site:
    """A workspace on a machine that has a Slurm."""

    lab: Lab
    slurm: Slurm

    def queue(self) -> list[str]:
        """Number and state of every job."""
        return self.slurm.call("squeue", "-h", "-o", "%i %T").splitlines()

    def run(self, *words: str) -> subprocess.Popen[str]:
        """`nexa run` that goes on; what it says is in run.err."""
        with open(self.lab.root / "run.err", "w") as err:
            return self.lab.begin("run", *words, "--cluster", "lab", stdout=err, stderr=err)

    def said(self) -> str:
        return (self.lab.root / "run.err").read_text()

    def step(self, at: int) -> bool:
        found = re.findall(r"step (\d+)/", self.said())
        return bool(found) and int(found[-1]) >= at

    def plain(self, steps: int) -> str:
        return self.lab.plain("plain", "--steps", steps, "--step-seconds", 0.2, "--save-every", 1000)

    def receipt(self) -> dict[str, Any]:
        (path,) = (self.lab.root / ".nexa" / "history").glob("lab_*/receipt.json")
        return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def machine() -> Iterator[Slurm]:
    with slurm() as made:
        yield made
    assert made.processes() == []


@pytest.fixture
def site(machine: Slurm, tmp_path: Path) -> Iterator[Site]:
    made = Site(Lab(tmp_path, env=machine.environment), machine)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    made.lab.write("lab.yaml", FILE)
    yield made
    machine.call("scancel", "--user=root", check=False)
    until(lambda: not made.queue(), "every job has ended")
    until(lambda: not everything_of(tmp_path), f"nothing of {tmp_path} is left")


def test_a_training_on_an_allocation_and_after_a_preemption_with_the_same_loss(site: Site) -> None:
    lab = site.lab
    shown = lab.nexa("plan", "--cluster", "lab.yaml").stderr
    assert "#SBATCH --gres=gpu:2" in shown and "4 ranks for at most 3.33 GPU-hours, 8.33 USD" in shown
    assert "to start at" in shown and site.queue() == []
    script = json.loads(lab.nexa("plan", "--cluster", "lab.yaml", "--json").stdout)["sbatch"]
    checked = subprocess.run(["shellcheck", "-"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    lab.nexa("provision", "--cluster", "lab.yaml", timeout_s=900)
    (job,) = site.queue()
    assert job.endswith("RUNNING")
    assert [row["state"] for row in lab.json("status")["clusters"][0]["nodes"]] == ["up", "up"]

    shutil.copy(REPO / "configs" / "train" / "quickstart.yaml", lab.root / "t.yaml")
    shutil.copytree(REPO / "nexa_dist" / "plan", lab.root / "text")  # less text than the standard library
    words = "trainer.steps=40 trainer.save_every=15 trainer.log_every=1 trainer.batch_size=2 model.layers=1 "
    words += "model.hidden_size=32 model.intermediate_size=64 dataset.sequence_length=32 model.vocab_size=512 "
    words += "dataset.source=path dataset.path=text dataset.min_mb=0.1 launcher=direct"
    small = [word for one in words.split() for word in ("--set", one)]
    losses = []
    for broken in (False, True):
        running = site.run("t.yaml", *small)
        if broken:
            until(lambda: site.step(18), "step 18", 900)
            urgent_job(site.slurm)
        assert running.wait(1500) == 0, site.said()
        manifest = lab.manifest()
        assert [row["kind"] for row in manifest["attempts"]] == ["notice"] * broken + ["completed"]
        assert manifest["hardware"]["provider"] == "slurm"
        assert not broken or manifest["attempts"][1]["resume_step"] >= 18, "it saved because it was told to"
        losses.append([manifest["eval_report"][name] for name in ("eval_loss_nats", "train_loss_last", "steps")])
    assert losses[0] == losses[1], "bit for bit"
    assert "step 40" in lab.nexa("logs", lab.newest().name).stdout
    assert [line.split()[0] for line in site.queue()] != [job.split()[0]], "another allocation"

    lab.nexa("teardown", "--cluster", "lab", "-y")
    assert site.queue() == []
    told = site.receipt()
    assert told["left"] == {"jobs": []} and told["cost_usd"] > 0
    assert [row["state"] for row in told["jobs"]] == ["CANCELLED"]
    assert "accounting" in told["jobs"][0]["accounting"], "sacct says that there is none here"


def test_a_preempted_run_saves_within_kill_wait_and_goes_on_in_the_next_allocation(site: Site) -> None:
    lab = site.lab
    lab.nexa("provision", "--cluster", "lab.yaml", timeout_s=900)
    running = site.run(site.plain(80))
    until(lambda: site.step(10), "step 10")
    urgent_job(site.slurm)
    assert running.wait(900) == 0, site.said()
    first, second = lab.manifest()["attempts"]
    assert (first["kind"], second["kind"]) == ("notice", "completed")
    assert "was given notice: Slurm" in first["cause"]
    assert first["last_step"] >= second["resume_step"] >= 10, "it saved because it was told to: no interval was over"
    assert lab.log(0, "n0", 2).splitlines()[-1] == unbroken(80)
    periods = [json.loads(line) for line in (lab.root / ".nexa/clusters/lab/ledger.jsonl").read_text().splitlines()]
    ends = [row["why"] for row in periods if row["event"] == "node_stop"]
    assert len(ends) == 2 and all("PREEMPTED" in why for why in ends), "the queue costs nothing"


def test_an_allocation_at_its_time_limit_gives_notice_and_the_run_goes_on(site: Site) -> None:
    lab = site.lab
    lab.write("lab.yaml", FILE.replace("time: 50", "time: 3, notice_s: 60"))
    lab.nexa("provision", "--cluster", "lab.yaml", timeout_s=900)
    running = site.run(site.plain(600))
    assert running.wait(1500) == 0, site.said()
    attempts = lab.manifest()["attempts"]
    assert len(attempts) >= 2 and {row["kind"] for row in attempts[:-1]} == {"notice"}
    assert "the job's time limit comes" in attempts[0]["cause"] or "Slurm" in attempts[0]["cause"]
    assert lab.log(0, "n0", len(attempts)).splitlines()[-1] == unbroken(600)


def test_a_job_that_somebody_cancels_ends_the_run_and_is_not_asked_for_again(site: Site) -> None:
    lab = site.lab
    lab.nexa("provision", "--cluster", "lab.yaml", timeout_s=900)
    running = site.run(site.plain(150))
    until(lambda: site.step(10), "step 10")
    number = site.queue()[0].split()[0]
    site.slurm.call("scancel", number)
    assert running.wait(600) != 0
    assert f"job {number} was cancelled" in site.said()
    assert "checkpoint saved" in site.said()
    manifest = lab.manifest()
    (attempt,) = manifest["attempts"]
    assert (manifest["status"], attempt["kind"], attempt["next"]) == ("stopped", "notice", "stop")
    assert attempt["last_step"] >= 10
    assert site.queue() == [], "nobody asked for another one"
    rows = lab.json("status")["clusters"][0]["nodes"]
    assert all(f"job {number} is CANCELLED" in row["machine"] for row in rows)
    lab.nexa("provision", "--cluster", "lab.yaml", timeout_s=900)
    assert len(site.queue()) == 1
    lab.nexa("run", "--resume", lab.newest().name, "--cluster", "lab", timeout_s=900)
    assert lab.manifest()["attempts"][-1]["resume_step"] >= 10, (
        "from the checkpoint of the allocation that was cancelled"
    )
    assert lab.log(0, "n0", 2).splitlines()[-1] == unbroken(150)
    lab.nexa("teardown", "--cluster", "lab", "-y")
    assert site.queue() == []


def test_an_account_that_is_refused_says_why_and_leaves_nothing(site: Site) -> None:
    lab = site.lab
    lab.write("lab.yaml", FILE.replace("partition: day", "partition: physics, account: biology"))
    refused = lab.nexa("provision", "--cluster", "lab.yaml", code=1).stderr
    assert "account" in refused.lower() and "hint" in refused
    assert site.queue() == []
    lab.nexa("teardown", "--cluster", "lab", "-y")
    assert not (lab.root / ".nexa" / "clusters" / "lab").exists()


def test_a_provision_that_is_killed_goes_on_with_the_same_job_and_one_that_nobody_comes_for_ends(site: Site) -> None:
    lab = site.lab
    site.slurm.call("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 25")
    record = lab.root / ".nexa" / "clusters" / "lab" / "slurm.json"
    provision = lab.begin("provision", "--cluster", "lab.yaml")
    until(lambda: record.exists() and json.loads(record.read_text())["job"], "the job is in the queue")
    provision.send_signal(signal.SIGKILL)
    provision.wait(30)
    known = json.loads(record.read_text())
    record.write_text(json.dumps({**known, "job": ""}))  # as if killed between sbatch and its answer
    again = lab.nexa("provision", "--cluster", "lab.yaml", timeout_s=900).stderr
    assert f"job {known['job']} was submitted before" in again
    assert [line for line in site.queue() if "RUNNING" in line] == [f"{known['job']} RUNNING"]
    lab.nexa("teardown", "--cluster", "lab", "-y")

    lab.write("lab.yaml", FILE + "boot_timeout_s: 5\n")
    site.slurm.call("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 15")
    record.unlink(missing_ok=True)
    provision = lab.begin("provision", "--cluster", "lab.yaml")
    until(lambda: record.exists() and json.loads(record.read_text())["job"], "the job is in the queue")
    provision.send_signal(signal.SIGKILL)
    provision.wait(30)
    number = json.loads(record.read_text())["job"]
    site.slurm.wait(number, "COMPLETED", timeout_s=120)
    lab.nexa("teardown", "--cluster", "lab", "-y")
    assert site.queue() == []
