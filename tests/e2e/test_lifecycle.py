"""provision and teardown when something goes wrong, and a training that goes on where it was stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexa_dist.config.load import load_train
from nexa_dist.run import files
from nexa_dist.train import data
from nexa_dist.train.text import corpus
from tests import held, little_text
from tests.e2e.conftest import NEXA, NO_TORCH, REPO, Lab, contents, environment, everything_of, kill, runs, until

pytestmark = pytest.mark.e2e

HOST_PY = REPO / "terraform" / "modules" / "local_node" / "host.py"
TINY = {
    "name": "tiny",
    "backend": "hf",
    "launcher": "direct",  # which imports transformers once a node
    "model": {
        "vocab_size": 512, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "dropout": 0.1,
    },
    "dataset": {"source": "path", "path": "text", "sequence_length": 32},
    "trainer": {"steps": 60, "batch_size": 2, "log_every": 5, "save_every": 10},
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Lab]:
    """A workspace of its own, for what would hurt the shared cluster."""
    made = Lab(tmp_path / "own lab")
    made.root.mkdir()
    made.write("c.yaml", "name: own\nprovider: local\nnodes: 2\ngpus_per_node: 1\n")
    yield made
    made.nexa("teardown", "-y", "--keep-nothing")
    until(lambda: not everything_of(made.root), f"nothing of {made.root} is left")


def tiny(lab: Lab, nproc: int = 2, **trainer: object) -> str:
    little_text.write(lab.root / "text")  # travels to the nodes with the project
    config = {**TINY, "nproc_per_node": nproc, "trainer": {**TINY["trainer"], **trainer}}  # type: ignore[dict-item]
    return lab.write("tiny.yaml", json.dumps(config))


@contextlib.contextmanager
def unprepared(lab: Lab, train: str) -> Iterator[None]:
    """Meanwhile no node can get the data ready: we hold the lock under which it is made."""
    config = load_train(lab.root / train)
    assert config.dataset and config.model
    root, texts = corpus.sources(config.dataset.model_copy(update={"path": str(lab.root / "text")}))
    key = data._content_key(config.dataset, config.model, root, texts)
    cluster = json.loads((lab.root / ".nexa" / "clusters" / "lab" / "cluster.json").read_text())
    lock = Path(cluster["layout"]["shared"]) / "data" / f"{key}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def held_ranks(clean: Lab) -> Iterator[None]:
    with held.at_a_step(clean.root):
        yield


def final_files(lab: Lab) -> dict[str, str]:
    """SHA-256 of every file of the last checkpoint: weights, optimizer, scheduler, all ranks' random states."""
    checkpoint = lab.manifest()["checkpoint"]
    assert checkpoint["step"] == 60
    listed = json.loads((Path(checkpoint["path"]) / "manifest.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.pt"} <= set(listed)
    return {name: entry["sha256"] for name, entry in listed.items()}


@pytest.mark.long("three trainings of four ranks; tests/processes/train/test_hf_resume.py holds the bits")
def test_a_stopped_training_resumes_on_every_node_bit_for_bit(clean: Lab, held_ranks: None) -> None:
    words = ("run", tiny(clean))
    clean.nexa(*words)
    first, unbroken, losses = clean.newest(), final_files(clean), clean.manifest()["eval_report"]

    child = clean.begin(*words, "--set", 'env.WAIT_AT="30"')
    until(lambda: clean.newest() != first and "step 25/60" in clean.log(0, "n0"), "the training is under way")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=600)
    assert child.returncode == 130, said
    assert "of code" not in said  # nothing changed since the first run, so nothing was sent
    run = clean.newest()
    # Without what rank 0 saved for good, only the scratch of node n0 has a checkpoint: n1 must be sent one.
    (clean.root / ".nexa" / "durable" / run.name).rename(clean.root / "elsewhere")
    said = clean.nexa("run", "--resume", run.name).stderr
    assert "n1: checkpoint of step" in said
    attempts = clean.record()["attempts"]
    assert [a["state"] for a in attempts] == ["stopped", "completed"]
    assert attempts[1]["resume_step"] >= 25
    assert final_files(clean) == unbroken
    assert clean.manifest()["eval_report"]["eval_loss_nats"] == losses["eval_loss_nats"]
    assert clean.manifest()["eval_report"]["train_loss_last"] == losses["train_loss_last"]


@pytest.mark.long("a training for one moment of its launch")
def test_attach_starts_ranks_that_a_killed_controller_left_prepared(clean: Lab) -> None:
    before = runs(clean)
    train = tiny(clean, 1, steps=10, batch_size=3)
    with unprepared(clean, train):
        child = clean.begin("run", train, "--set", "launcher=torchrun")
        until(lambda: runs(clean) > before and (clean.newest() / "run.json").exists(), "the agents are about to start")
        nodes = until(lambda: clean.record()["nodes"], "nodes")
        events = {name: Path(entry["run_dir"], "agent.jsonl") for name, entry in nodes.items()}
        until(lambda: all(p.exists() and '"prepare"' in p.read_text() for p in events.values()), "both prepare")
        child.kill()
        child.communicate()
    until(lambda: all('"prepared"' in p.read_text() for p in events.values()), "both are prepared")
    assert not any('"torchrun"' in p.read_text() for p in events.values())
    seen = clean.newest() / "logs" / "n0" / "agent.jsonl"  # as if the killed one had seen this much of n0
    files.write_bytes(seen, events["n0"].read_bytes())
    clean.nexa("attach")
    assert clean.manifest()["status"] == "completed"


@pytest.mark.long("a training with another service's library")
def test_wandb_offline_and_no_secret_anywhere(clean: Lab) -> None:
    canaries = {"WANDB_API_KEY": "c0ffee" * 6 + "abcd", "HF_TOKEN": "hf_canaryCANARYcanaryCANARY"}
    train = tiny(clean, 1, steps=10, save_every=10)
    script = "import os\nprint(os.environ['HF_TOKEN'][:9], 'came')\nimport time\ntime.sleep(2)\n"
    clean.nexa("run", train, "--set", "wandb=offline", **canaries)
    manifest = clean.manifest()
    assert manifest["wandb_run_id"]
    assert list((clean.newest() / "outputs").rglob("run-*.wandb")), "unasked"
    seen: set[bytes] = set()
    words = [*NEXA, "run", clean.script("sees", script, **NO_TORCH)]
    with subprocess.Popen(words, cwd=clean.root, env=environment(**canaries), stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:
            for path in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    seen.add((path / "cmdline").read_bytes())
            time.sleep(0.05)
    assert child.returncode == 0 and "hf_canary came" in clean.log(0, "n0")
    for canary in canaries.values():
        assert not [words for words in seen if canary.encode() in words]
        kept = [path for path, content in contents(clean.root) if canary.encode() in content]
        assert kept == []


@pytest.mark.long("two trainings; test_durable.py has the damage without a cluster")
def test_a_damaged_newest_checkpoint_is_passed_over(clean: Lab) -> None:
    before = runs(clean)
    child = clean.begin("run", tiny(clean, 1, steps=2000))
    until(
        lambda: runs(clean) > before and "step 45/2000" in clean.log(0, "n0"),
        "the training is under way",
    )
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=600)
    run = clean.newest()
    scratch = Path(clean.record()["nodes"]["n0"]["run_dir"]) / "checkpoints"
    steps = sorted(p.name for p in scratch.glob("step_*"))
    assert len(steps) == 2
    for root in (scratch, clean.root / ".nexa" / "durable" / run.name / "checkpoints"):
        path = root / steps[-1] / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    child = clean.begin("run", "--resume", run.name)
    until(lambda: clean.log(0, "n0", attempt=2).count("step ") > 1, "it goes on")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=600)
    assert f"{steps[-1]} is passed over: model.safetensors: " in said
    assert clean.record()["attempts"][1]["resume_step"] == int(steps[0].split("_")[1])


def killed_at(lab: Lab, step: str, *words: str) -> None:
    """Begins a command, and kills it soon after a step has begun."""
    journal = lab.root / ".nexa" / "clusters" / "own" / "journal.jsonl"
    before = begun(journal, step)
    child = lab.begin(*words)
    until(lambda: begun(journal, step) > before or child.poll() is not None, f"{step} has begun")
    time.sleep(0.4)  # into it
    child.kill()
    said = child.communicate()
    assert child.returncode in (0, -signal.SIGKILL), said  # 0: it was through before we looked


def begun(journal: Path, step: str) -> int:
    return sum((row["step"], row["state"]) == (step, "intent") for row in files.read_lines(journal))


def daemons(lab: Lab) -> dict[str, int]:
    status = [sys.executable, HOST_PY, "status", lab.root / ".nexa/clusters/own/nodes"]
    return {row["node"]: row["pid"] for row in json.loads(subprocess.check_output(status))}


@pytest.mark.long("every step of a provision killed, one by one")
def test_killed_anywhere_it_converges_and_only_a_dead_node_is_made_anew(own: Lab) -> None:
    for step in ("create", "bootstrap", "check"):
        killed_at(own, step, "provision", "--cluster", "c.yaml")
    own.nexa("provision", "--cluster", "c.yaml")
    assert [n["state"] for n in own.json("status")["clusters"][0]["nodes"]] == ["up", "up"]
    before = daemons(own)
    said = own.nexa("provision", "--cluster", "c.yaml").stderr
    assert "0 tasks changed" in said
    assert "made anew" not in said
    kill(before["n1"])
    until(lambda: own.json("status")["clusters"][0]["nodes"][1]["state"] == "unreachable", "n1 is off")
    variables = json.loads((own.root / ".nexa/clusters/own/terraform/nexa.tfvars.json").read_text())
    where = variables["nodes"]["n1"]["address"], variables["nodes"]["n1"]["port"]
    with socket.create_server(where):  # somebody else got the port meanwhile
        said = own.nexa("provision", "--cluster", "c.yaml").stderr
        assert "off, made anew: n1" in said
        assert f"in use by another program, choosing again: {where[0]}:{where[1]}" in said
    after = daemons(own)
    assert after["n0"] == before["n0"]
    assert after["n1"] != before["n1"]
    assert own.json("status")["clusters"][0]["nodes"][1]["state"] == "up"
    killed_at(own, "terraform destroy", "teardown", "-y", "--keep-nothing")
    own.nexa("teardown", "-y", "--keep-nothing")
    own.nexa("teardown", "-y", "--keep-nothing")


def test_killed_then_two_at_once_without_git_an_active_run_and_no_state_at_the_end(own: Lab) -> None:
    home = own.root / "home"
    home.mkdir()
    assert subprocess.run(["git", "-C", str(own.root), "status"], capture_output=True).returncode
    killed_at(own, "create", "provision", "--cluster", "c.yaml")
    journal = own.root / ".nexa/clusters/own/journal.jsonl"
    before = begun(journal, "create")
    child = own.begin("provision", "--cluster", "c.yaml")
    until(lambda: begun(journal, "create") > before, "the next one holds the lock")
    assert "own is in use" in own.nexa("provision", "--cluster", "c.yaml", code=1, HOME=str(home)).stderr
    told = child.communicate(timeout=400)
    assert child.returncode == 0, told
    said = own.nexa("ssh", "n1", "--", "sh", "-c", "echo $HOME $0", "it's me", HOME=str(home)).stdout
    assert said == f"{own.root}/.nexa/clusters/own/nodes/n1/home it's me\n"
    assert not (home / ".ssh").exists()

    sleeps = "import os, time\nopen('model.pt', 'w').write('x')\ntime.sleep(600)\n"
    own.nexa("run", own.script("sleep", sleeps, **NO_TORCH), "--detach")
    until(lambda: "model.pt" in own.nexa("teardown", "--dry-run").stderr, "a rank has written something")
    assert "only on the nodes of own" in own.nexa("teardown", "-y", code=2).stderr
    assert "-y says yes" in own.nexa("teardown", "--keep-nothing", code=2).stderr
    state = own.root / ".nexa" / "clusters" / "own" / "terraform" / "terraform.tfstate"
    state.write_text(state.read_text()[:100])
    receipt = own.json("teardown", "-y", "--keep-nothing")
    assert own.json("runs")[0]["state"] == "stopped"
    assert own.manifest()["status"] == "stopped"
    assert receipt["left"] == {"resources": [], "listening": [], "processes": []}
    assert [row["node"] for row in receipt["swept"]] == ["n0", "n1"]
    assert json.loads((own.root / receipt["receipt"]).read_text()) == receipt
