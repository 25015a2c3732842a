"""provision and teardown when something goes wrong, and a training that goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import NEXA, REPO, Lab, environment, everything_of, kill, runs, until

pytestmark = pytest.mark.e2e

HOST_PY = REPO / "terraform" / "modules" / "local_node" / "host.py"
TINY = {
    "name": "tiny",
    "backend": "hf",
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
    made.nexa("teardown", "-y")
    until(lambda: not everything_of(made.root), f"nothing of {made.root} is left", 15)


def tiny(lab: Lab, **trainer: object) -> str:
    for source in Path(json.__file__).parent.glob("*.py"):  # travels to the nodes with the project
        lab.write(f"text/{source.name}", source.read_text())
    config = {**TINY, "trainer": {**TINY["trainer"], **trainer}}  # type: ignore[dict-item]
    return lab.write("tiny.yaml", json.dumps(config))


def final_files(lab: Lab) -> dict[str, str]:
    """SHA-256 of every file of the last checkpoint: weights, optimizer, scheduler, all ranks' random states."""
    checkpoint = lab.manifest()["checkpoint"]
    assert checkpoint["step"] == 60
    files = json.loads((Path(checkpoint["path"]) / "manifest.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.pt"} <= set(files)
    return {name: entry["sha256"] for name, entry in files.items()}


def test_a_stopped_training_resumes_on_every_node_bit_for_bit(clean: Lab) -> None:
    train = tiny(clean)
    clean.nexa("run", train)
    first, unbroken, losses = clean.newest(), final_files(clean), clean.manifest()["eval_report"]

    child = clean.begin("run", train)
    until(lambda: clean.newest() != first and "step 25/60" in clean.log(0, "n0"), "the training is under way")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
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


def test_attach_starts_ranks_that_a_killed_controller_left_prepared(clean: Lab) -> None:
    before = runs(clean)
    child = clean.begin("run", tiny(clean, steps=10, batch_size=3))
    until(lambda: runs(clean) > before and (clean.newest() / "run.json").exists(), "the agents are about to start")
    events = {n: Path(e["run_dir"], "agent.jsonl") for n, e in until(lambda: clean.record()["nodes"], "nodes").items()}
    until(lambda: all(p.exists() and '"prepare"' in p.read_text() for p in events.values()), "both prepare")
    child.kill()
    child.communicate()
    until(lambda: all('"prepared"' in p.read_text() for p in events.values()), "both are prepared")
    assert not any('"torchrun"' in p.read_text() for p in events.values())
    seen = clean.newest() / "logs" / "n0" / "agent.jsonl"  # as if the killed one had seen this much of n0
    seen.parent.mkdir(parents=True, exist_ok=True)
    seen.write_bytes(events["n0"].read_bytes())
    clean.nexa("attach")
    assert clean.manifest()["status"] == "completed"


def test_wandb_offline_and_no_secret_anywhere(clean: Lab) -> None:
    canaries = {"WANDB_API_KEY": "c0ffee" * 6 + "abcd", "HF_TOKEN": "hf_canaryCANARYcanaryCANARY"}
    train = tiny(clean, steps=10, save_every=10)
    script = "import os\nassert os.environ['HF_TOKEN'].startswith('hf_canary')\nimport time\ntime.sleep(2)\n"
    clean.nexa("run", train, "--set", "wandb=offline", **canaries)
    manifest = clean.manifest()
    assert manifest["wandb_run_id"]
    seen: set[bytes] = set()
    clean.nexa("run", clean.script("sees", script), code=1)  # without them its assertion fails
    with subprocess.Popen(
        [*NEXA, "run", "sees.yaml"], cwd=clean.root, env=environment(**canaries), stderr=subprocess.DEVNULL
    ) as child:
        while child.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_bytes())
            time.sleep(0.02)
    assert child.returncode == 0
    for canary in canaries.values():
        assert not [words for words in seen if canary.encode() in words]
        kept = [p for p in clean.root.rglob("*") if p.is_file() and canary.encode() in p.read_bytes()]
        assert kept == []


def test_a_damaged_newest_checkpoint_is_passed_over(clean: Lab) -> None:
    before = runs(clean)
    child = clean.begin("run", tiny(clean, steps=2000))
    until(
        lambda: runs(clean) > before and "step 45/2000" in clean.log(0, "n0"),
        "the training is under way",
    )
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
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
    _, said = child.communicate(timeout=60)
    assert f"{steps[-1]} is passed over: model.safetensors: " in said
    assert clean.record()["attempts"][1]["resume_step"] == int(steps[0].split("_")[1])


@pytest.mark.parametrize("after_s", [0.4, 1.2, 5.0])
def test_provision_killed_anywhere_converges(own: Lab, after_s: float) -> None:
    child = own.begin("provision", "--cluster", "c.yaml")
    time.sleep(after_s)
    child.kill()
    child.communicate()
    own.nexa("provision", "--cluster", "c.yaml")
    states = [n["state"] for n in own.json("status")["clusters"][0]["nodes"]]
    assert states == ["up", "up"]


def test_a_second_provision_changes_nothing_and_a_dead_node_is_made_anew(own: Lab) -> None:
    def daemons() -> dict[str, int]:
        status = [sys.executable, HOST_PY, "status", own.root / ".nexa/clusters/own/nodes"]
        return {row["node"]: row["pid"] for row in json.loads(subprocess.check_output(status))}

    own.nexa("provision", "--cluster", "c.yaml")
    before = daemons()
    said = own.nexa("provision", "--cluster", "c.yaml").stderr
    assert "0 tasks changed" in said
    assert "made anew" not in said
    kill(before["n1"])
    until(lambda: own.json("status")["clusters"][0]["nodes"][1]["state"] == "unreachable", "n1 is off")
    variables = json.loads((own.root / ".nexa/clusters/own/terraform/nexa.tfvars.json").read_text())
    where = variables["nodes"]["n1"]["address"], variables["nodes"]["n1"]["port"]
    with socket.create_server(where):  # somebody else got the port meanwhile
        said = own.nexa("provision", "--cluster", "c.yaml").stderr
        assert "not answering, made anew: n1" in said
        assert f"in use by another program, choosing again: {where[0]}:{where[1]}" in said
    after = daemons()
    assert after["n0"] == before["n0"]
    assert after["n1"] != before["n1"]
    assert own.json("status")["clusters"][0]["nodes"][1]["state"] == "up"


def test_teardown_twice_killed_and_without_state(own: Lab) -> None:
    own.nexa("provision", "--cluster", "c.yaml")
    child = own.begin("teardown", "-y")
    time.sleep(0.5)
    child.kill()
    child.communicate()
    own.nexa("teardown", "-y")
    own.nexa("teardown", "-y")
    own.nexa("provision", "--cluster", "c.yaml")
    state = own.root / ".nexa" / "clusters" / "own" / "terraform" / "terraform.tfstate"
    state.write_text(state.read_text()[:100])
    receipt = own.json("teardown", "-y")
    assert receipt["left"] == {"resources": [], "listening": [], "processes": []}
    assert [row["node"] for row in receipt["swept"]] == ["n0", "n1"]
    assert json.loads((own.root / receipt["receipt"]).read_text()) == receipt


def test_teardown_ends_an_active_run_only_when_told(own: Lab) -> None:
    own.nexa("provision", "--cluster", "c.yaml")
    own.nexa("run", own.script("sleep", "import time\ntime.sleep(600)\n"), "--detach")
    assert "-y says yes" in own.nexa("teardown", code=2).stderr
    own.nexa("teardown", "-y")
    assert own.json("runs")[0]["state"] == "stopped"
    assert own.manifest()["status"] == "stopped"


def test_two_at_once_and_a_user_who_never_was_in_ssh(own: Lab) -> None:
    home = own.root / "home"
    home.mkdir()
    child = own.begin("provision", "--cluster", "c.yaml")
    until(lambda: (own.root / ".nexa/clusters/own/lock").exists(), "the first holds the lock")
    time.sleep(0.2)
    assert "own is in use" in own.nexa("provision", "--cluster", "c.yaml", code=1, HOME=str(home)).stderr
    child.communicate(timeout=120)
    assert child.returncode == 0
    said = own.nexa("ssh", "n1", "--", "sh", "-c", "echo $HOME $0", "it's me", HOME=str(home)).stdout
    assert said == f"{own.root}/.nexa/clusters/own/nodes/n1/home it's me\n"
    assert not (home / ".ssh").exists()


def test_git_is_not_needed(own: Lab) -> None:
    assert subprocess.run(["git", "-C", str(own.root), "status"], capture_output=True).returncode
    own.nexa("provision", "--cluster", "c.yaml", "--set", "nodes=1")
    own.nexa("run", own.script("hello", "import os\nprint('hello from', os.environ['RANK'])\n"))
    assert "hello from 0" in own.log(0, "n0")
