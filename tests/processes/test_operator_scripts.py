"""The operator's scripts, as they are called on a machine of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def call(script: str, *words: str, cwd: Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [REPO / "scripts" / script, *words], cwd=cwd, capture_output=True, text=True, timeout=900,
        env={**os.environ, "NEXA_PYTHON": sys.executable, **env},
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_cleanup_only_says_what_would_go_until_it_is_told_to(tmp_path: Path) -> None:
    folder = tmp_path / "scratch" / "train_20260101_000000_old"
    folder.mkdir(parents=True)
    (folder / "agent.jsonl").write_text("{}\n")
    at = time.time() - 30 * 86400
    for path in (folder / "agent.jsonl", folder):
        os.utime(path, (at, at))
    said = call("cleanup.sh", cwd=tmp_path, NEXA_SCRATCH=str(tmp_path / "scratch"), NEXA_DURABLE="").stdout
    assert f"would remove: {folder}" in said and "--delete removes them" in said and folder.exists()
    said = call("cleanup.sh", "--scratch", "scratch", "--delete", cwd=tmp_path, NEXA_DURABLE="").stdout
    assert "record: scratch/archive/" in said and not folder.exists()
    told = call("cleanup.sh", cwd=tmp_path, code=2, NEXA_SCRATCH="", NEXA_DURABLE="").stderr
    assert "hint: or set NEXA_SCRATCH" in told


def test_an_environment_that_the_script_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine" / "bin").mkdir(parents=True)
    said = call("bootstrap_env.sh", "mine", cwd=tmp_path, code=1).stderr
    assert f"{tmp_path}/mine is there, and this script did not make it" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["bin"]


@pytest.mark.long("an environment of two gigabytes; test_make_env.py has how it is built")
def test_a_bare_machine_gets_an_environment_that_trains_once(tmp_path: Path) -> None:
    wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    if not wheels:
        pytest.skip("no folder of wheels is named, so torch would be downloaded")
    # The cache of other environments here, on whose disk files are linked and not copied.
    env = {"UV_FIND_LINKS": wheels, "NEXA_CACHE": os.environ.get("NEXA_SHARED") or str(Path.home() / ".cache" / "nexa")}
    first = call("bootstrap_env.sh", "env", cwd=tmp_path, **env)
    assert "torch 2." in first.stdout and "0 GPUs" in first.stdout
    trains = "import torch, transformers, nexa_dist.train.launcher; print(torch.ones(2).sum().item())"
    argv = [tmp_path / "env" / "bin" / "python", "-c", trains]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    assert subprocess.run(argv, cwd=tmp_path, env=clean, capture_output=True, text=True).stdout == "2.0\n"
    made = (tmp_path / "env" / ".complete").stat().st_mtime_ns
    again = call("bootstrap_env.sh", "env", cwd=tmp_path, **env)
    assert "making" not in again.stderr and again.stdout == first.stdout
    assert (tmp_path / "env" / ".complete").stat().st_mtime_ns == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["env"]
