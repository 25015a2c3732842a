"""nexa run --from: the code, data and config of a run, whatever was edited since, to the last bit of its loss."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.e2e.conftest import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.long("four trainings; tests/unit/ops/work/test_origin.py has each part")]

TRAIN = """
import os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
torch.manual_seed(7)
dist.init_process_group("gloo")
text = open(os.path.join(os.environ["NEXA_RUN_DIR"], "data", "corpus")).read()
ids = torch.tensor([ord(char) % 64 for char in text])[dist.get_rank()::dist.get_world_size()]
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64)))
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
for step in range(30):
    loss = torch.nn.functional.cross_entropy(model(ids[:-1]), ids[1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if dist.get_rank() == 0:
    print("loss", loss.item().hex(), flush=True)
dist.destroy_process_group()
"""


def loss(lab: Lab) -> float:
    found = re.search(r"loss (\S+)", lab.log(0, "n0"))
    assert found, lab.log(0, "n0")
    return float.fromhex(found[1])


def test_an_edited_project_runs_as_it_was_bit_for_bit(clean: Lab) -> None:
    lab = clean
    lab.write("corpus.txt", "the quick brown fox jumps over the lazy dog. " * 20)
    train = lab.script("again", TRAIN.replace("RATE", "0.5"), data={"corpus": "corpus.txt"}, launcher="direct")
    snapshot = lab.json("snapshot", "-o", "before.json")
    assert "torch" in snapshot["nodes"]["n0"]["freeze"] and snapshot["nodes"]["n1"]["packages"]
    lab.nexa("run", train)
    first, unbroken = lab.newest().name, loss(lab)
    manifest = lab.manifest()
    assert manifest["snapshot"]["sha256"] == snapshot["sha256"]
    assert 0 < unbroken < 4.1  # it learns: ln 64 is 4.16

    lab.write("again.py", TRAIN.replace("RATE", "0.1"))
    lab.write("corpus.txt", "something else altogether " * 30)
    lab.nexa("run", train)
    assert loss(lab) != unbroken
    said = lab.nexa("run", "--from", first).stderr
    assert "same: code" in said and "unsure: data corpus: corpus.txt is not what it was" in said
    assert lab.newest().name != first and loss(lab) == unbroken
    again = lab.manifest()
    assert again["reproduces"] == {"run": first, "differs": [], "changed": []}
    assert [again[key] for key in ("code_hash", "git_commit")] == [manifest[key] for key in ("code_hash", "git_commit")]
    assert again["data"]["corpus"]["id"] == manifest["data"]["corpus"]["id"]

    shown = lab.nexa("run", "--from", first, "--dry-run")
    assert "ranks 0 to 1 of 4" in shown.stdout and "again.py" in shown.stdout
    assert lab.newest().name == again["run_id"]
    assert "ranks: 4 then, 2 now" in lab.nexa("run", "--from", first, "--set", "nproc_per_node=1", code=2).stderr
    lab.json("snapshot", "-o", "after.json")
    changed = lab.nexa("snapshot", "diff", "before.json", "after.json", code=1).stdout.splitlines()
    assert [line.partition(":")[0] for line in changed] == ["code project"], changed
    shutil.rmtree(lab.root / "runs" / first / "code")
    assert "cannot be had again" in lab.nexa("run", "--from", first, code=2).stderr
    assert json.loads((lab.root / "before.json").read_text())["sha256"] == snapshot["sha256"]
