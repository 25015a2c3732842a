"""A pipeline on a real cluster: raw rows, a dataset, a training on two nodes with two ranks each, and its lineage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab

pytestmark = pytest.mark.e2e
STUDENT = {
    "backend": "hf", "nproc_per_node": 2, "wandb": "off", "restarts_per_hour": 0, "data": {"dataset": "./none"},
    "model": {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64},
    "dataset": {"source": "examples", "path": "$NEXA_DATA/dataset", "sequence_length": 32},
    "trainer": {"steps": 30, "batch_size": 4, "learning_rate": 0.01, "save_every": 15},
}  # fmt: skip
PIPELINE = {
    "pipeline": "toy",
    "stages": {
        "rows": {"config": "rows.yaml", "where": "cluster"},
        "student": {"config": "student.yaml", "inputs": {"dataset": "stage:rows/train"}, "where": "cluster"},
    },
}


@pytest.mark.long("two runs with a training; unit/ops/pipeline has the chain, unit/stages how a stage becomes a run")
def test_rows_become_a_dataset_and_a_student_on_the_cluster(clean: Lab) -> None:
    chance = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    rows = [{"text": " ".join(chance.choices(words, k=20))} for _ in range(400)]
    clean.write("raw.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    clean.write("rows.yaml", "stage: data\ninputs: {rows: raw.jsonl}\nsplit: {}\n")
    clean.write("student.yaml", json.dumps(STUDENT))
    file = clean.write("chain.yaml", json.dumps(PIPELINE))
    clean.nexa("pipeline", "run", file, timeout_s=900)
    told = clean.json("pipeline", "status", file)
    assert [(row["stage"], row["state"], row["version"]) for row in told["stages"]] == [
        ("rows", "done", "rows@v1"), ("student", "done", "student@v1"),
    ]  # fmt: skip
    assert told["total"]["usd"] > 0
    manifests = [json.loads(path.read_text()) for path in sorted((clean.root / "runs/manifests").glob("*.json"))]
    known = {one["stage"]: one for one in manifests if one["config"]["name"] in ("rows", "student")}
    assert (known["data"]["status"], known["train"]["status"], len(known["train"]["nodes"])) == (
        "completed", "completed", 2,
    )  # fmt: skip
    assert known["data"]["nodes"][0]["ranks"] == [0, 0]
    report = known["train"]["eval_report"]
    assert report["train_loss_last"] < report["train_loss_first"] - 1
    again = clean.nexa("pipeline", "run", file)
    assert "✓ student: student@v1, done before" in again.stderr
    assert clean.nexa("data", "verify").returncode == 0
    tree = clean.json("lineage", "student")
    rows_of = tree["parents"]["dataset"]
    assert (rows_of["label"], list(rows_of["parents"])) == ("rows@v1", ["rows"])
    assert rows_of["parents"]["rows"]["label"] == "raw.jsonl"
    folder = Path(clean.json("data", "show", "student")["path"])
    assert (folder / "checkpoint" / "model.safetensors").exists()
