"""scripts/bench_train: its files are such that every backend takes them, and what it compares is one training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_dist.config.backends import BACKENDS, resolve
from nexa_dist.config.load import load_train
from tests.bench.train.files import CPU, GPU, Files, Size

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench_train"


@pytest.mark.parametrize(("size", "precision"), [(CPU, "fp32"), (GPU, "bf16")])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_takes_its_files(
    name: str, size: Size, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for GPUs too, which nothing here can run."""
    monkeypatch.chdir(tmp_path)
    *_, path = Files(tmp_path, size, precision).arguments(name, 7)
    config = load_train(Path(path), [])
    assert config.backend == name
    if config.trainer is not None:
        assert (config.trainer.steps, config.trainer.precision) == (7, precision)
    if reads := BACKENDS[name].reads:
        resolve(reads)(config)


@pytest.mark.long("two ranks import transformers, four times")
def test_it_measures_the_same_training_by_hand_and_by_hf(tmp_path: Path) -> None:
    """ds is left out aloud, since the interpreter named for it is none."""
    words = ["--rounds", "1", "--only", "hf,ds", "--python", "ds=/bin/false", "--json"]
    env = {**os.environ, "NEXA_PYTHON": sys.executable}
    done = subprocess.run([SCRIPT, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "nexa ds: left out" in done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows.keys() == {"hand", "hf"}
    assert {row["parallel"] for row in rows.values()} == {"DDP"}
    for row in rows.values():
        assert row["losses"][0] == pytest.approx(7.6, abs=0.3), "ln 2048, of random weights"
        assert row["losses"][1] < row["losses"][0] - 0.3
        assert min(row[name] for name in ("tokens_per_s", "save_s", "start_s", "resume_s")) > 0
        assert row["peak_bytes"] > 50e6
    assert rows["hand"]["losses"][1] == pytest.approx(rows["hf"]["losses"][1], abs=0.3)
    assert list(tmp_path.iterdir()) == []
