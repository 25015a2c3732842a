"""The stage train on one machine: stopped and gone on with, it comes to the loss of an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nexa_dist.stages.registry import Registry

STUDENT = {
    "backend": "hf", "wandb": "off", "data": {"dataset": "./none"},
    "model": {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64},
    "dataset": {"source": "examples", "path": "$NEXA_DATA/dataset", "sequence_length": 32},
    "trainer": {"steps": 40, "batch_size": 4, "learning_rate": 0.01, "save_every": 10},
}  # fmt: skip


def begin(folder: Path, out: str) -> subprocess.Popen[bytes]:
    words = ["-m", "nexa_dist.stages.train", "--config", "student.yaml", "--input", "dataset=rows.jsonl"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "NEXA_WORKSPACE": str(folder)}
    with (folder / f"{out}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *words, "--output", out], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT
        )


@pytest.mark.long("two trainings; the trainer's own resume is in the short tier")
def test_stopped_and_gone_on_with_it_is_the_unbroken_training(tmp_path: Path) -> None:
    rows = [{"text": f"alpha beta gamma {n % 7} delta epsilon {n % 5} zeta eta {n}"} for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "student.yaml").write_text(json.dumps(STUDENT))
    assert begin(tmp_path, "whole").wait(300) == 0, (tmp_path / "whole.log").read_text()
    child, until = begin(tmp_path, "torn"), time.monotonic() + 300
    while not list((tmp_path / "torn").glob(".run/checkpoints/step_*")):
        assert time.monotonic() < until
        assert child.poll() in (None, 0)
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(120) in (0, 143)
    assert begin(tmp_path, "torn").wait(300) == 0, (tmp_path / "torn.log").read_text()
    whole, torn = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "torn"))
    assert whole["key"] == torn["key"]
    assert whole["counts"] == torn["counts"] == {"step": 40}
    losses = [one["notes"]["eval_report"]["eval_loss_nats"] for one in (whole, torn)]
    assert losses[0] == losses[1] < 5.0  # ln 300 = 5.7 nats is that of a guess
    assert [name for name in os.listdir(tmp_path / "torn") if name.startswith(".")] == []
    version = Registry(tmp_path).add(tmp_path / "torn")
    assert (version.label, list(Registry(tmp_path).faults(version))) == ("student@v1", [])
