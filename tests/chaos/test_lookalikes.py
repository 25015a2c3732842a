"""What only looks dead is not ended: a slice of simulated schedules, many of them, and real ones on local nodes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import lookalikes
from tests.e2e.conftest import REPO, environment


def test_some_schedules_end_no_healthy_node_and_find_the_dead() -> None:
    rows = [lookalikes.run(seed) for seed in range(30)]
    assert [(row.seed, row.wrong) for row in rows if row.wrong] == []
    assert any(row.found_s is not None for row in rows)


@pytest.mark.long("1,000 schedules")
def test_many_schedules() -> None:
    rows = [lookalikes.run(seed) for seed in range(1000)]
    assert [(row.seed, row.wrong) for row in rows if row.wrong] == []
    told = [row.found_s for row in rows if row.found_s is not None and row.cloud_tells]
    assert statistics.median(told) <= 10


@pytest.mark.e2e
@pytest.mark.long("20 minutes: a real run whose controller is cut off 24 times")
def test_a_real_controller_is_cut_off(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.chaos.cutoff", "--rounds", "24", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(argv, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=2700)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    told = json.loads((tmp_path / "rows.json").read_text())
    assert (told["rounds"], told["wrong"]) == (24, 0)
