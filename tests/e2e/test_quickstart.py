"""The README's first command, from a checkout in which nothing was ever set up."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import copy_checkout, environment, everything_of, until

pytestmark = pytest.mark.e2e
FEW = (
    "trainer.steps=30",
    "nproc_per_node=1",
    "model.vocab_size=512",
    "model.hidden_size=64",
    "model.layers=1",
    "model.heads=2",
    "model.intermediate_size=128",
    "dataset.sequence_length=64",
    "dataset.source=path",
    "dataset.path=nexa_dist/plan",  # less text than the standard library
    "dataset.min_mb=0.1",
)


def setup(checkout: Path, env: dict[str, str]) -> None:
    """scripts/setup, from uv's cache if that holds all; what set up the environment of this test has filled it."""
    argv = [str(checkout / "scripts" / "setup"), "controller"]
    done = subprocess.run(argv, env={**env, "UV_OFFLINE": "1"}, capture_output=True, text=True, timeout=600)
    if done.returncode:
        subprocess.run(argv, env=env, check=True, timeout=600)


def test_set_up_provision_train_teardown(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    copy_checkout(checkout)
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    env = environment()
    del env["PYTHONPATH"]
    setup(checkout, env)
    argv = [str(checkout / "scripts" / "quickstart"), *(word for each in FEW for word in ("--set", each))]
    done = subprocess.run(
        argv, cwd=os.sep, env=env, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (checkout / "runs" / "manifests").glob("*.json")
    manifest = json.loads(path.read_text())
    assert (manifest["status"], manifest["hardware"]["world_size"]) == ("completed", 2)
    report = manifest["eval_report"]
    assert report["train_loss_last"] < report["train_loss_first"] - 0.2
    assert manifest["checkpoint"]["step"] == 30 and Path(manifest["checkpoint"]["path"]).is_dir()
    assert f"manifest    {path.relative_to(checkout)}" in done.stdout
    told = subprocess.check_output([checkout / ".venv/bin/nexa", "report", "--json"], cwd=checkout, env=env, text=True)
    found = json.loads(told)
    [attempt] = found["attempts"]
    points = attempt["points"]
    assert [step for step, _ in points["loss"]] == [step for step, _ in points["learning_rate"]] == [1, 20]
    assert (
        points["held_out"][-1][0] == 30
        and abs(points["held_out"][-1][1] - report["eval_loss_nats"]) < 1e-4
        and points["tokens_per_s"]
    )
    assert found["cost"]["usd"] == 0 and len(found["bandwidth"]["gbps"]) == 2
    [receipt] = (checkout / ".nexa" / "history").glob("local_*/receipt.json")
    assert not any(json.loads(receipt.read_text())["left"].values())
    until(lambda: not everything_of(checkout), "nothing of it is left")
