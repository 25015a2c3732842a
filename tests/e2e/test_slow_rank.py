"""A rank that the others wait for, then one that does not come to a collective: two local nodes of two ranks, gloo."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.e2e.conftest import Lab

pytestmark = pytest.mark.e2e

SLOW = """
import os, time
import torch
from nexa_dist.train import control, progress
from nexa_dist.train.env import RankEnv
env = RankEnv.read("slow", os.environ)
control.join(env)
for step in range(1, 8):
    own_s = 0.8 if env.rank == 3 else 0.4
    time.sleep(own_s)
    torch.distributed.all_reduce(torch.ones(5))
    progress.report(step, 20, own_s=own_s)
if env.rank != 2:
    torch.distributed.all_reduce(torch.ones(5))
time.sleep(600)
"""


@pytest.mark.long("the named rank and the collective come from tested parts; this is the way between them")
def test_a_straggler_and_a_rank_that_does_not_come_are_named(clean: Lab) -> None:
    done = clean.nexa("run", clean.script("slow", SLOW, hang_timeout_s=4, restarts_per_hour=0), code=1)
    words = "rank 3 (n1) takes 2.0 × the median's own time a step (0.80 s, the median 0.40 s); the others wait for it"
    assert done.stderr.count(words) == 1
    run = clean.newest().name
    why = clean.nexa("why", run).stdout
    assert "rank 2 on n1 failed first" in why
    assert "ranks 0, 1, 3 wait in all_reduce [[5]] number 8 of default_pg, to which rank 2 has not come" in why
    kept = sorted((clean.newest() / "outputs").rglob("flight.attempt_1.json.gz"))
    assert len(kept) == 4
    assert json.loads(gzip.decompress(kept[0].read_bytes()))["entries"][0]["profiling_name"] == "gloo:all_reduce"
