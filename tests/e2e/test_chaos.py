"""Two seeds of the nemesis on a local cluster: the agent, the supervisor, the disk and a rank are hurt.

By hand, on machines of an emulated region that can be lost too: `python -m tests.chaos.nemesis --seeds 20`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import REPO, environment

pytestmark = [pytest.mark.e2e, pytest.mark.long("minutes: two seeds of faults against a whole training")]
SEEDS = (2, 3)


def test_a_training_survives_what_is_done_to_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.chaos.nemesis", "--local", "--only", *map(str, SEEDS), "--steps", "60"]
    argv += ["--launcher", "direct", "--step-seconds", "0.15", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(argv, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    rows = json.loads((tmp_path / "rows.json").read_text())["seeds"]
    assert [row["seed"] for row in rows] == list(SEEDS)
    assert all(row["faults"] and row["wrong"] == [] for row in rows)
    kinds = {fault.split()[0] for row in rows for fault in row["faults"] if "not done" not in fault}
    assert kinds == {"kill_agent", "fill_disk", "kill_supervisor", "freeze_rank"}
    assert all(len(row["attempts"]) > 1 for row in rows)
