"""Axolotl by the file that is shipped, on two local nodes: environment, preprocessing, training, manifest; one node is
lost for good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import heavy, held
from tests.e2e.conftest import Lab, runs
from tests.e2e.test_sharded_nodes import NOT_DURABLE, loses_a_node

pytestmark = pytest.mark.e2e
LORA, TRAIN = "configs/axolotl/science_lora.yaml", "configs/train/axolotl.yaml"


@pytest.fixture
def clean(clean: Lab) -> Iterator[Lab]:
    """Without a durable folder, and with ranks that can be held at a step."""
    with held.at_a_step(clean.root, NOT_DURABLE):
        yield clean


@pytest.mark.long("builds the environment heavy (4.2 GB, minutes; then cached); each rank imports Axolotl for seconds")
def test_a_run_of_axolotl_is_prepared_once_a_node_and_a_lost_one_costs_the_steps_since_the_last_checkpoint(
    clean: Lab,
) -> None:
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
    words = ["run", TRAIN, "--set", "nproc_per_node=1", "--set", 'env.HF_HUB_OFFLINE="1"']
    clean.nexa(*words, "--set", "restarts_per_hour=0", "--rank", "all", timeout_s=2400)
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

    loses_a_node(clean, [*words, "--set", "launcher=direct"], wait_at=13, saved=8, everywhere=False)
    resumed = clean.manifest()["eval_report"]
    assert clean.manifest()["checkpoint"]["step"] == manifest["checkpoint"]["step"] == report["steps"]
    for name in ("train_loss_first", "train_loss_last", "eval_loss_nats"):
        assert abs(resumed[name] - report[name]) <= 1e-5, name
