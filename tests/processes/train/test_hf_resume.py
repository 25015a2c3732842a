"""Backend hf, stopped and resumed: the bits of an unbroken training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes.train_ranks import DATASET, MODEL, Start, result, train

STEPS, STOP_AT = 24, 13
TINY = {
    "backend": "hf",
    "model": {**MODEL, "dropout": 0.1},
    "dataset": DATASET,
    "trainer": {"steps": STEPS, "batch_size": 2, "log_every": 5, "save_every": 8},
}


def final_files(run_dir: Path) -> dict[str, str]:
    """SHA-256 of every file of the last checkpoint: weights, optimizer, scheduler, both ranks' random states."""
    told = json.loads((run_dir / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").read_text())
    assert {"model.safetensors", "optimizer.pt", "rng_state_1.pth"} <= set(told["files"])
    return {name: entry["sha256"] for name, entry in told["files"].items()}


def test_stopped_and_resumed_is_unbroken_bit_for_bit_and_learns(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    codes, said = train(
        tmp_path, [Start("unbroken", TINY), Start("broken", TINY, stop_at=STOP_AT), Start("broken", TINY)]
    )
    assert codes == [[0, 0], [143, 143], [0, 0]], said
    assert f"stopped by SIGTERM at step {STOP_AT}" in said
    assert final_files(tmp_path / "broken") == final_files(tmp_path / "unbroken")
    first, second = result(tmp_path, "unbroken"), result(tmp_path, "broken")
    assert first["eval_report"]["eval_loss_nats"] == second["eval_report"]["eval_loss_nats"]
    assert first["eval_report"]["train_loss_last"] < first["eval_report"]["train_loss_first"]
