"""Axolotl by the file that is shipped, on two local nodes: environment, preprocessing, training, manifest."""

from __future__ import annotations

import pytest

from tests import heavy
from tests.e2e.conftest import Lab, runs

pytestmark = pytest.mark.e2e
LORA, TRAIN = "configs/axolotl/science_lora.yaml", "configs/train/axolotl.yaml"


@pytest.mark.long("builds the environment heavy (4.2 GB, minutes; then cached), and imports Axolotl four times")
def test_a_run_of_axolotl_is_prepared_once_a_node_and_its_manifest_says_what_it_was(clean: Lab) -> None:
    heavy.project(clean.root)
    lora = (clean.root / LORA).read_text()
    clean.write("typo.yaml", lora.replace("learning_rate:", "lerning_rate:"))
    before = runs(clean)
    refused = clean.nexa("run", TRAIN, "--set", "config=typo.yaml", code=2)
    line = lora.splitlines().index("learning_rate: 0.01") + 1
    assert (
        f"typo.yaml:{line}: lerning_rate: unknown key of Axolotl (hint: did you mean learning_rate?)" in refused.stderr
    )
    assert runs(clean) == before
    words = ["--set", "nproc_per_node=1", "--set", "restarts_per_hour=0", "--set", "env={HF_HUB_OFFLINE: '1'}"]
    clean.nexa("run", TRAIN, *words, "--rank", "all", timeout_s=2400)
    manifest = clean.manifest()
    assert (manifest["status"], manifest["parallel"], manifest["environment"]["name"]) == ("completed", "DDP", "heavy")
    assert "axolotl==0.19.0" in manifest["environment"]["freeze"] and "backend:ax" in manifest["tags"]
    assert manifest["model"] == "model" and manifest["dataset"]["path"] == "data/science.jsonl"
    report = manifest["eval_report"]
    assert report["steps"] == 24 and report["train_loss_last"] < report["train_loss_first"] - 0.05
    assert report["adapter"] == "lora" and report["local_parameters"] == [report["parameters"]] * 2
    assert manifest["environment"]["hash"] in clean.nexa("env").stdout
    for rank in (0, 1):
        assert "Starting trainer" in clean.log(0, "n0") and "Loading raw datasets" not in clean.log(rank, f"n{rank}")
    clean.nexa("pull", "--checkpoint", "newest")
    [pulled] = clean.newest().glob("checkpoints/step_00000024/adapter_model.safetensors")
    assert pulled.stat().st_size > 10_000
