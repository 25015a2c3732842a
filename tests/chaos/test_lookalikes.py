"""What only looks dead is not ended: a slice of simulated schedules, many of them, and real ones on local nodes."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import cutoff, lookalikes
from tests.e2e.conftest import REPO, environment


def test_some_schedules_end_no_healthy_node_and_find_the_dead() -> None:
    rows = [lookalikes.run(seed) for seed in range(30)]
    assert [(row.seed, row.wrong) for row in rows if row.wrong] == []
    assert any(row.found_s is not None for row in rows)


@pytest.mark.long("1,000 schedules")
def test_many_schedules() -> None:
    rows = [lookalikes.run(seed) for seed in range(1000)]
    assert [(row.seed, row.wrong) for row in rows if row.wrong] == []
    for who, limit_s in (("the cloud", 10), ("another node alone (shutdown)", 10), ("another node alone (power)", 45)):
        told = [row.found_s for row in rows if row.found_s is not None and row.who == who]
        assert told and statistics.median(told) <= limit_s, who


@pytest.mark.e2e
@pytest.mark.long("5 minutes: two real runs side by side, cut off from their controllers in all eight ways together")
def test_a_real_controller_is_cut_off(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos.cutoff"]
    with contextlib.ExitStack() as stack:
        runs = []
        for seed in range(2):
            ways = cutoff.EVENTS[seed::2]
            log = stack.enter_context((tmp_path / f"{seed}.log").open("w+"))
            words = ("--seed", str(seed), "--rounds", str(len(ways)), "--ways", *ways)
            run = subprocess.Popen([*command, *words], cwd=REPO, env=environment(), stdout=log, stderr=log)
            stack.callback(run.wait, 120)
            stack.callback(run.terminate)  # where the test is interrupted: it takes its own hosts down
            runs.append((run, log, len(ways)))
        for run, log, rounds in runs:
            code = run.wait(timeout=1500)
            log.seek(0)
            text = log.read()
            assert code == 0, text[-4000:]
            told = json.loads(text.splitlines()[-1])
            assert (told["rounds"], told["wrong"]) == (rounds, 0), text[-4000:]


@pytest.mark.e2e
@pytest.mark.long("two minutes: two real runs on own hosts, in a network of their own")
@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace takes root")
def test_a_real_host_that_shuts_down_is_told_from_one_that_is_cut_off() -> None:
    command = [sys.executable, "-m", "tests.chaos.hung_up"]
    done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["cut off for 20 s"] is None and told["shut down"] < 20, told  # 10 s of a machine that is not loaded
