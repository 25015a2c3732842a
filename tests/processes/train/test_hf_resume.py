"""Backend hf, stopped and resumed: the bits of an unbroken training. Two ranks, forked from one interpreter that has
torch and transformers imported, which is most of the time of a training as short as these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.ops.providers.local import free_port

REPO = Path(__file__).resolve().parents[3]
STEPS, STOP_AT = 24, 13
TINY = {
    "name": "tiny",
    "backend": "hf",
    "model": {
        "vocab_size": 512, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "dropout": 0.1,
    },
    "dataset": {"source": "path", "path": "text", "sequence_length": 32, "min_mb": 0},
    "trainer": {"steps": STEPS, "batch_size": 2, "log_every": 5, "save_every": 8},
}  # fmt: skip
STAGE = """
import glob, json, os, signal, sys, time
import torch, transformers.trainer
from nexa_dist.train import launcher, progress
from nexa_dist.train.backends import hf

def rank(number, settings, stop_at):
    os.environ.update(settings, RANK=str(number), LOCAL_RANK=str(number))
    told = progress.report
    def report(step, *more, **named):
        told(step, *more, **named)
        if step == stop_at:
            open("%s/at_%d" % (settings["NEXA_RUN_DIR"], number), "w").close()
        while step == stop_at and signal.getsignal(signal.SIGTERM).__self__.at is None:  # control.StopSignal
            time.sleep(0.01)
    progress.report = report
    return launcher.main(["--backend", "hf", "--config", "tiny.json"])

for line in sys.stdin:
    settings, stop_at = json.loads(line)
    pids = []
    for number in (0, 1):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = rank(number, settings, stop_at)
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    if stop_at:
        until = time.monotonic() + 300
        while len(glob.glob(settings["NEXA_RUN_DIR"] + "/at_*")) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""


def final_files(run_dir: Path) -> dict[str, str]:
    """SHA-256 of every file of the last checkpoint: weights, optimizer, scheduler, both ranks' random states."""
    told = json.loads((run_dir / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").read_text())
    assert {"model.safetensors", "optimizer.pt", "rng_state_1.pth"} <= set(told["files"])
    return {name: entry["sha256"] for name, entry in told["files"].items()}


def test_stopped_and_resumed_is_unbroken_bit_for_bit_and_learns(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "text").mkdir()
    for source in Path(json.__file__).parent.glob("*.py"):
        (tmp_path / "text" / source.name).write_text(source.read_text())
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    address = f"127.0.{1 + os.getpid() % 200}.9"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEXA_", "RANK", "WORLD_SIZE"))}
    env = {**kept, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": address, "GLOO_SOCKET_IFNAME": "lo", "NEXA_SHARED": str(tmp_path / "shared")}
    prepare = [sys.executable, "-m", "nexa_dist.train.launcher", "--backend", "hf", "--config", "tiny.json"]
    subprocess.run([*prepare, "--prepare"], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=600)

    lines: list[Any] = []
    for name, stop_at in (("unbroken", None), ("broken", STOP_AT), ("broken", None)):
        (tmp_path / name).mkdir(exist_ok=True)
        port = free_port(address)
        lines.append([{"NEXA_RUN_DIR": str(tmp_path / name), "MASTER_PORT": str(port)}, stop_at])
    asked = "".join(json.dumps(line) + "\n" for line in lines)
    stage = subprocess.run(
        [sys.executable, "-c", STAGE], cwd=tmp_path, env=env, input=asked, capture_output=True, text=True, timeout=600
    )
    codes = [json.loads(line) for line in stage.stdout.splitlines() if line.startswith("[")]
    assert codes == [[0, 0], [143, 143], [0, 0]], stage.stdout + stage.stderr
    assert f"stopped by SIGTERM at step {STOP_AT}" in stage.stdout
    assert final_files(tmp_path / "broken") == final_files(tmp_path / "unbroken")
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("unbroken", "broken"))
    assert first["eval_report"]["eval_loss_nats"] == second["eval_report"]["eval_loss_nats"]
    assert first["eval_report"]["train_loss_last"] < first["eval_report"]["train_loss_first"]
