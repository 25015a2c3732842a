"""Trainings as jobs of a real Slurm: preempted, timed out, cancelled, drained, as an array, refused.

Two slurmd on this machine (tests/slurm.py). The rank is tests/plain_rank.py, whose last line is a hash that is the same
however often it was stopped; one test trains for real.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NEXA, PLAIN_RANK, REPO, environment
from tests.slurm import Slurm, missing, slurm

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(missing()), reason=missing())]
LONG = "a Slurm of its own, and jobs that wait for it: the submission is in the short tier"
TRAIN = """\
name: plain
script: plain_rank.py
launcher: direct
preload: false
slurm: {nodes: 2, gres: "gpu:1", time: 30, usd_per_gpu_hour: 2.5}
"""
TORCHRUN = ("--set", "launcher=torchrun", "--set", "preload=true")
"""Which imports torch, 2 CPU s a node and attempt."""


@dataclass(frozen=True)
class Site:
    """A workspace on a machine that has a Slurm."""

    root: Path
    slurm: Slurm

    def nexa(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            (*NEXA, *words), cwd=self.root, env={**environment(), **self.slurm.environment}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def submit(self, *words: str, **rank: str) -> tuple[str, list[Path]]:
        """Number of the job, and the folders of its runs. `rank` are arguments of the rank."""
        args = [word for name, value in rank.items() for word in (f"--{name.replace('_', '-')}", value)]
        file = [] if not args else ["--set", f"args={json.dumps(args)}"]
        told = json.loads(self.nexa("slurm", "submit", "t.yaml", *file, *words, "--json").stdout)
        return told["job"], [self.root / "runs" / name for name in told["runs"]]

    @property
    def go(self) -> Path:
        return self.root / "go"

    def held(self, *words: str, **rank: str) -> tuple[str, list[Path]]:
        """The same of ranks that do not go beyond step 10 before `go` is there: what is done to them comes in time. No
        rank is a step ahead of another, and prunes the checkpoint that one still has to begin from."""
        together = str(self.root / ".nexa" / "together")  # which is no code, and so is not sent
        return self.submit(*words, hold=str(self.go), step_seconds="0", together=together, **rank)

    def ended(self, number: str, *states: str, timeout_s: float = 400.0) -> dict[str, str]:
        return self.slurm.wait(number, *states, timeout_s=timeout_s)

    def manifest(self, run: Path) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.root / "runs" / "manifests" / f"{run.name}.json").read_text())
        return told

    def last_line(self, run: Path, rank: int = 0, attempt: int = 1) -> str:
        (log,) = (run / "logs").glob(f"*/rank_{rank}/attempt_{attempt}.log")
        return log.read_text().splitlines()[-1]

    def left(self) -> list[str]:
        """Processes of runs of this workspace, by their command lines."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and str(self.root).encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return [line for line in found if line and "pytest" not in line]


def until(true: Callable[[], object], what: str, timeout_s: float = 180.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


def stepped(run: Path, step: int, attempt: int = 1) -> Callable[[], bool]:
    """Whether rank 0 has done this step; its log is on the file system that all share."""
    scratch = run.parents[1] / ".nexa" / "slurm" / "scratch" / f"{run.name}.n0" / "rank_0" / f"attempt_{attempt}.log"
    return lambda: scratch.exists() and f"step {step}/" in scratch.read_text()


def urgent_job(slurm: Slurm) -> str:
    """Number of a job that wants all nodes, in a partition that goes before the others."""
    wants = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    return slurm.call("sbatch", "--parsable", *wants).strip()


def unbroken(steps: int) -> str:
    """The last line of a rank that did all of these steps."""

    state = b""
    for step in range(1, steps + 1):
        state = hashlib.sha256(state + b"%d" % step).digest()
    return f"state {state.hex()}"


@pytest.fixture(scope="module")
def machine() -> Iterator[Slurm]:
    with slurm() as made:
        yield made
    assert made.processes() == []


@pytest.fixture
def site(machine: Slurm, tmp_path: Path) -> Iterator[Site]:
    shutil.copy(PLAIN_RANK, tmp_path)
    (tmp_path / "t.yaml").write_text(TRAIN)
    made = Site(tmp_path, machine)
    yield made
    machine.call("scancel", "--user=root", check=False)
    until(lambda: not machine.call("squeue", "-h").strip(), "every job has ended")
    until(lambda: not made.left(), f"nothing is left: {made.left()}", 60)


def test_a_job_of_one_rank_runs_and_the_batch_script_is_clean(site: Site) -> None:
    """The one of the short tier: what is printed is what Slurm takes, and runs to its end with a manifest."""
    door = (sys.executable, REPO / "scripts" / "submit_slurm.py", "t.yaml", "--print")
    env = {**environment(), **site.slurm.environment}
    shown = subprocess.run(door, cwd=site.root, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "2 ranks for at most 1.00 GPU-hours, 2.50 USD" in shown.stderr
    assert "to start at" in shown.stderr  # sbatch --test-only
    assert not (site.root / "runs").exists()
    checked = subprocess.run(["shellcheck", "-"], input=shown.stdout, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    number, (run,) = site.submit(*TORCHRUN, "--set", "slurm.nodes=1", steps="3", step_seconds="0", save_every="3")
    site.ended(number, "COMPLETED")
    manifest = site.manifest(run)
    assert (manifest["status"], manifest["hardware"]["provider"], manifest["checkpoint"]["step"]) == (
        "completed", "slurm_job", 3,
    )  # fmt: skip
    assert site.last_line(run) == unbroken(3)


@pytest.mark.long(LONG)
@pytest.mark.parametrize(("partition", "launcher"), [("day", TORCHRUN), ("grace", ())], ids=["day", "grace"])
def test_a_preempted_job_saves_waits_and_ends_as_an_unbroken_one(
    site: Site, partition: str, launcher: tuple[str, ...]
) -> None:
    number, (run,) = site.held("--set", f"slurm.partition={partition}", *launcher, steps="40", save_every="100")
    until(stepped(run, 3), "step 3")
    site.ended(urgent_job(site.slurm), "COMPLETED")
    assert site.manifest(run)["status"] == "retry"
    site.go.touch()
    site.ended(number, "COMPLETED")
    manifest = site.manifest(run)
    first, second = manifest["attempts"]
    assert (manifest["status"], first["kind"], first["next"], second["kind"]) == (
        "completed", "notice", "restart", "completed",
    )  # fmt: skip
    assert "preempted" in first["cause"]
    assert first["last_step"] >= second["resume_step"] >= 3, "it saved because it was told to: no interval was over"
    assert site.last_line(run, attempt=2) == unbroken(40)
    assert "Slurm wanted the nodes back" in site.nexa("why", run.name, "--attempt", "1").stdout


@pytest.mark.long("a time limit of Slurm's is a minute at least")
def test_at_its_time_limit_a_job_saves_and_goes_on(site: Site) -> None:
    number, (run,) = site.submit(
        "--set", "slurm.time=2", "--set", "slurm.notice_s=30", steps="340", step_seconds="0.3", save_every="1000"
    )
    site.ended(number, "COMPLETED", timeout_s=900)
    attempts = site.manifest(run)["attempts"]
    assert [row["kind"] for row in attempts] == ["notice"] * (len(attempts) - 1) + ["completed"]
    assert len(attempts) >= 2
    assert "time limit" in attempts[0]["cause"]
    assert attempts[0]["last_step"] >= attempts[1]["resume_step"] > 0
    assert site.last_line(run, attempt=len(attempts)) == unbroken(340)


@pytest.mark.long(LONG)
@pytest.mark.parametrize("how", [(), ("--signal=TERM",)])
def test_a_cancelled_job_is_stopped_with_a_checkpoint_and_nothing_is_left(site: Site, how: tuple[str, ...]) -> None:
    number, (run,) = site.submit(steps="4000", step_seconds="0.2", save_every="1000")
    until(stepped(run, 3), "step 3")
    site.slurm.call("scancel", *how, number)
    site.ended(number, "CANCELLED", "FAILED")
    until(lambda: not site.left(), "nothing is left")
    manifest = site.manifest(run)
    (attempt,) = manifest["attempts"]
    assert (manifest["status"], attempt["kind"], attempt["next"]) == ("stopped", "stopped", "stop")
    assert attempt["last_step"] >= manifest["checkpoint"]["step"] >= 3
    assert site.slurm.job(number)["Restarts"] == "0"


@pytest.mark.long(LONG)
def test_a_batch_script_that_is_killed_leaves_nothing_and_the_next_job_goes_on(site: Site) -> None:
    """The controller of a job is its batch script: without it Slurm ends the step, and the attempt is closed later."""
    number, (run,) = site.held(steps="40", save_every="2")
    until(stepped(run, 5), "step 5")
    site.slurm.call("scancel", "--batch", "--signal=KILL", number)
    site.ended(number, "FAILED", "CANCELLED")
    until(lambda: not site.left(), "nothing is left")
    assert json.loads((run / "run.json").read_text())["attempts"][0]["state"] == "running"
    assert "led by its job of Slurm's" in site.nexa("attach", run.name, code=2).stderr
    site.go.touch()
    site.slurm.call("scontrol", "requeue", number)
    site.ended(number, "COMPLETED")
    first, second = site.manifest(run)["attempts"]
    assert (first["kind"], second["kind"], second["resume_step"] >= 4) == ("notice", "completed", True)
    assert site.last_line(run, attempt=2) == unbroken(40)


@pytest.mark.long(LONG)
@pytest.mark.parametrize("killed", [False, True])
def test_nexa_stop_ends_the_job_and_writes_down_what_it_could_not(site: Site, killed: bool) -> None:
    number, (run,) = site.submit(steps="4000", step_seconds="0.2", save_every="2")
    until(stepped(run, 5), "step 5")
    assert "step 5/" in site.nexa("logs", run.name, "--rank", "0").stdout
    if killed:
        site.slurm.call("scancel", "--batch", "--signal=KILL", number)
        site.ended(number, "FAILED", "CANCELLED")
    told = json.loads(site.nexa("stop", run.name, "--json").stdout)
    assert (told["job"], told["state"], told["was"]) == (number, "stopped", "gone" if killed else "RUNNING")
    assert site.left() == []
    manifest = site.manifest(run)
    assert (manifest["status"], manifest["attempts"][0]["next"]) == ("stopped", "stop")
    assert manifest["checkpoint"]["step"] >= 4
    assert site.nexa("stop", run.name).returncode == 0, "a second time there is nothing to do"


@pytest.mark.long(LONG)
def test_a_drained_node_keeps_its_job_and_gets_no_other(site: Site) -> None:
    number, (run,) = site.held("--set", "slurm.nodes=1", steps="30", save_every="100")
    until(stepped(run, 3), "step 3")
    (node,) = {row["instance_id"] for row in json.loads((run / "run.json").read_text())["cluster"]["nodes"]}
    site.slurm.call("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        site.slurm.call("scontrol", "requeue", number)  # as when the drained node is wanted back at once
        until(lambda: int(site.slurm.job(number)["Restarts"]) > 0, "Slurm has put it into the queue again")
        site.go.touch()
        site.ended(number, "COMPLETED")
    finally:
        site.slurm.call("scontrol", "update", f"nodename={node}", "state=resume")
    record = json.loads((run / "run.json").read_text())
    assert record["cluster"]["nodes"][0]["instance_id"] != node
    assert record["attempts"][0]["end"]["last_step"] >= record["attempts"][1]["resume_step"] >= 3
    assert site.last_line(run, attempt=2) == unbroken(30)


@pytest.mark.long(LONG)
def test_a_node_that_goes_down_takes_the_job_into_the_queue_again(site: Site) -> None:
    number, (run,) = site.held(steps="40", save_every="2")
    until(stepped(run, 5), "step 5")
    site.slurm.call("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    until(lambda: int(site.slurm.job(number)["Restarts"]) > 0, "Slurm has put it into the queue again")
    site.go.touch()
    site.slurm.call("scontrol", "update", "nodename=n1", "state=resume", check=False)  # its slurmd may have been faster
    site.ended(number, "COMPLETED")
    first, second = site.manifest(run)["attempts"]
    assert (first["kind"], second["kind"]) == ("notice", "completed")
    assert site.last_line(run, attempt=2) == unbroken(40)


@pytest.mark.long(LONG)
def test_a_rank_that_fails_ends_the_others_and_the_same_nodes_begin_again(site: Site) -> None:
    number, (run,) = site.submit(steps="12", step_seconds="0.1", save_every="3", fail_at="5")
    site.ended(number, "COMPLETED")
    manifest = site.manifest(run)
    first, second = manifest["attempts"]
    assert (first["cause"], second["resume_step"]) == ("rank 1 on n1: exit code 1", 3)
    assert site.last_line(run, attempt=2) == unbroken(12)
    assert "RuntimeError: fell over" in site.nexa("why", run.name, "--attempt", "1").stdout


@pytest.mark.long(LONG)
def test_an_array_of_four_two_at_once_each_with_its_parameters_and_manifest(site: Site) -> None:
    (site.root / "who.py").write_text(
        "import os, sys\nprint('mine is', sys.argv[1], 'of element', os.environ['SLURM_ARRAY_TASK_ID'])\n"
    )
    grid = ("--grid", "args.0=a,b,c,d", "--array", "0-3%2")
    told = site.nexa("slurm", "submit", "t.yaml", "--set", "script=who.py", "--set", "args=[x]", *grid,
                     "--set", "slurm.nodes=1", "--json")  # fmt: skip
    made = json.loads(told.stdout)
    assert (made["bill"]["elements"], made["bill"]["gpu_hours"]) == (4, 2.0)
    at_once = 0

    def over() -> bool:
        nonlocal at_once
        states = site.slurm.call("squeue", "-h", "-r", "-j", made["job"], "-o", "%T", check=False).split()
        at_once = max(at_once, states.count("RUNNING"))
        return not states

    until(over, "the array has ended", 400)
    assert at_once <= 2
    for place, name in enumerate(made["runs"]):
        run = site.root / "runs" / name
        manifest = site.manifest(run)
        assert (manifest["status"], manifest["config"]["args"]) == ("completed", ["abcd"[place]])
        assert f"grid:args.0={'abcd'[place]}" in manifest["tags"]
        assert site.last_line(run) == f"mine is {'abcd'[place]} of element {place}"


@pytest.mark.long(LONG)
def test_what_slurm_refuses_or_would_never_start_is_said_and_leaves_nothing(site: Site) -> None:
    for key, value, words in (
        ("partition", "physics", "Slurm would never start job"),
        ("partition", "nosuch", "invalid partition specified: nosuch"),
        ("gres", "gpu:3", "Requested node configuration is not available"),
    ):
        told = site.nexa("slurm", "submit", "t.yaml", "--set", f"slurm.{key}={value}", code=1)
        assert re.search(words, told.stderr), told.stderr
        assert "hint: " in told.stderr
        assert "Traceback" not in told.stderr
    assert site.nexa("slurm", "submit", "t.yaml", "--set", "data.x=/tmp", code=2).stderr.startswith("error: data: not")
    assert list((site.root / "runs").glob("train_*")) == []
    assert site.slurm.call("squeue", "-h").strip() == ""


@pytest.mark.long(LONG)
def test_secrets_reach_the_ranks_and_no_file(site: Site) -> None:
    (site.root / "who.py").write_text(
        "import os, hashlib\nprint(hashlib.sha256(os.environ['LAB_KEY'].encode()).hexdigest())\n"
    )
    (site.root / ".env").write_text("LAB_KEY=canary-7f3a91\n")
    (site.root / ".env").chmod(0o600)
    (site.root / ".gitignore").write_text(".env\n")
    number, (run,) = site.submit("--set", "script=who.py", "--set", "secrets=[LAB_KEY]", "--set", "slurm.nodes=1")
    site.ended(number, "COMPLETED")

    assert site.last_line(run) == hashlib.sha256(b"canary-7f3a91").hexdigest()
    written = [path for path in site.root.rglob("*") if path.is_file() and path.name != ".env"]
    assert [path for path in written if b"canary-7f3a91" in path.read_bytes()] == []


@pytest.mark.long("a training of minutes")
def test_the_quickstart_is_preempted_once_and_ends_with_the_loss_of_an_unbroken_run(site: Site) -> None:
    shutil.copy(REPO / "configs" / "train" / "quickstart.yaml", site.root / "t.yaml")
    slurm_keys = ("--set", 'slurm={nodes: 2, gres: "gpu:1", time: 40}', "--set", "nproc_per_node=1")
    words = "trainer.steps=40 trainer.save_every=15 trainer.log_every=5 trainer.batch_size=2 model.layers=1 "
    words += "model.hidden_size=32 model.intermediate_size=64 dataset.sequence_length=32 model.vocab_size=512 "
    words += 'dataset.source=path dataset.path=text dataset.min_mb=0.1 env.OMP_NUM_THREADS="1"'
    shutil.copytree(REPO / "nexa_dist" / "plan", site.root / "text")  # less text than the standard library
    small = [word for one in words.split() for word in ("--set", one)]
    losses = []
    for broken in (False, True):
        number, (run,) = site.submit(*slurm_keys, *small)
        if broken:
            scratch = site.root / ".nexa" / "slurm" / "scratch" / f"{run.name}.n0"
            progress = scratch / "rank_0" / "progress.json"
            until(lambda p=progress: p.exists() and json.loads(p.read_text())["step"] >= 18, "step 18", 900)
            urgent_job(site.slurm)
        site.ended(number, "COMPLETED", timeout_s=1500)
        manifest = site.manifest(run)
        assert len(manifest["attempts"]) == 1 + broken
        losses.append([manifest["eval_report"][name] for name in ("eval_loss_nats", "train_loss_last", "steps")])
    assert losses[0] == losses[1], "bit for bit"
