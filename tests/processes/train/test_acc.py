"""Backend acc: FSDP2 for real on two ranks, and what is left of it at the end."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.processes.train_ranks import DATASET, MODEL, REPO, Start, losses, result, train

STEPS, STOP_AT = 24, 13
FINAL = f"checkpoints/step_{STEPS:08d}"
HELD_OUT = f"""
import json, numpy
told = json.load(open("broken/result.json"))
model = transformers.AutoModelForCausalLM.from_pretrained("broken/{FINAL}/model").eval()
tokens = numpy.load(told["dataset"]["path"] + "/held_out.npy").astype(numpy.int64)
rows = torch.from_numpy(tokens[: len(tokens) // 32 * 32].reshape(-1, 32))
with torch.no_grad():
    print("held-out loss of what is loaded:", float(model(input_ids=rows, labels=rows).loss))
"""

ADAPTED = f"""
import peft, safetensors.torch
model = peft.AutoPeftModelForCausalLM.from_pretrained("unbroken/{FINAL}/model")
saved = safetensors.torch.load_file("unbroken/{FINAL}/model/adapter_model.safetensors")
parts = peft.get_peft_model_state_dict(model)
same = parts.keys() == saved.keys() and all(parts[name].equal(saved[name]) for name in saved)
print("adapters of what is loaded:", same)
"""


def acc(dropout: float = 0.1, **trainer: Any) -> dict[str, Any]:
    return {
        "backend": "acc",
        "config": "fsdp.yaml",
        "model": {**MODEL, "dropout": dropout},
        "dataset": DATASET,
        "trainer": {"steps": STEPS, "batch_size": 2, "log_every": 5, "save_every": 8, "eval_every": 8, **trainer},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    shutil.copy(REPO / "configs" / "acc" / "fsdp_cpu.yaml", tmp_path / "fsdp.yaml")
    return tmp_path


def shards(run: Path) -> dict[str, str]:
    """SHA-256 of what the ranks wrote of the last step, and of the whole model."""
    files = [*run.glob(f"{FINAL}/__*"), *run.glob(f"{FINAL}/*.pth"), *run.glob(f"{FINAL}/model/*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_shards_are_real_and_a_resume_is_unbroken_bit_for_bit(folder: Path) -> None:
    starts = [Start("unbroken", acc()), Start("broken", acc(async_save=True), stop_at=STOP_AT), Start("broken", acc())]
    codes, said = train(folder, starts, HELD_OUT)
    assert codes == [[0, 0], [143, 143], [0, 0]], said
    assert f"stopped by SIGTERM at step {STOP_AT}" in said
    assert shards(folder / "broken") == shards(folder / "unbroken")
    assert {"__0_0.distcp", "__1_0.distcp", "rng_state_1.pth", "model.safetensors"} <= set(shards(folder / "broken"))
    told = result(folder, "unbroken")
    assert told["parallel"] == "FSDP2"
    assert told["sharding"]["local_parameters"] == [told["eval_report"]["parameters"] // 2] * 2
    assert told["eval_report"]["train_loss_last"] < told["eval_report"]["train_loss_first"]
    assert losses(folder, "broken", STEPS) == losses(folder, "unbroken", STEPS)
    loaded = float(said.partition("held-out loss of what is loaded: ")[2].partition("\n")[0])
    assert loaded == pytest.approx(told["eval_report"]["eval_loss_nats"], abs=1e-6)


def whole(folder: Path, name: str, step: int = STEPS) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / name / "checkpoints" / f"step_{step:08d}" / "model" / "model.safetensors")


def apart(first: Any, second: Any) -> float:
    """The largest difference of two models' weights."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.long("four ranks, five trainings")
def test_other_numbers_of_ranks_go_on_with_the_same_loss(folder: Path) -> None:
    """4 → 2 → 1 → 4 ranks with the same windows a step; and DDP on the same data."""
    four, two, one = (acc(0.0, log_every=1, batch_size=size) for size in (1, 2, 4))
    ddp = {key: value for key, value in {**four, "backend": "hf"}.items() if key != "config"}
    starts = [Start("unbroken", four, 4), Start("ddp", ddp, 4), Start("other", four, 4, stop_at=7)]
    starts += [Start("other", two, 2, stop_at=13), Start("other", one, 1, stop_at=18), Start("other", four, 4)]
    codes, said = train(folder, starts)
    assert codes == [[0] * 4, [0] * 4, [143] * 4, [143] * 2, [143], [0] * 4], said
    whole_way, ddp_way, other = (losses(folder, name, STEPS) for name in ("unbroken", "ddp", "other"))
    assert len(whole_way) == STEPS
    assert max(abs(whole_way[step] - other[step]) for step in whole_way) < 1e-5
    assert max(abs(whole_way[step] - ddp_way[step]) for step in whole_way) < 1e-5
    assert apart(whole(folder, "unbroken"), whole(folder, "other")) < 1e-5
    ends = [result(folder, name)["eval_report"]["eval_loss_nats"] for name in ("unbroken", "ddp", "other")]
    assert max(ends) - min(ends) < 1e-5
    counts = result(folder, "other")["sharding"]["local_parameters"]
    assert len(counts) == 4
    assert sum(counts) == result(folder, "other")["eval_report"]["parameters"]


@pytest.mark.long("a matrix of settings")
def test_what_is_asked_of_memory_changes_no_weight(folder: Path) -> None:
    """Offload, activation checkpointing, no resharding, other units: the bits of the plain training. bfloat16: near."""
    plain = (folder / "fsdp.yaml").read_text()
    settings = {
        "plain": plain,
        "offload": plain.replace("offload_params: false", "offload_params: true"),
        "again": f"{plain}  fsdp_activation_checkpointing: true\n",
        "kept": plain.replace("after_forward: true", "after_forward: false"),
        "root": plain.replace("TRANSFORMER_BASED_WRAP", "NO_WRAP"),
        "size": plain.replace("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP\n  fsdp_min_num_params: 5000"),
        "everywhere": f"{plain}  fsdp_cpu_ram_efficient_loading: false\n",
        "bf16": plain.replace('mixed_precision: "no"', "mixed_precision: bf16"),
    }
    starts = []
    for name, text in settings.items():
        assert name == "plain" or text != plain
        (folder / f"{name}.yaml").write_text(text)
        starts.append(Start(name, {**acc(steps=8), "config": f"{name}.yaml"}))
    codes, said = train(folder, starts)
    assert codes == [[0, 0]] * len(settings), said
    first = whole(folder, "plain", 8)
    exact = [name for name in settings if name != "bf16"]
    assert {name: apart(first, whole(folder, name, 8)) for name in exact} == dict.fromkeys(exact, 0.0)
    assert 0 < apart(first, whole(folder, "bf16", 8)) < 0.05
    ends = {name: result(folder, name) for name in settings}
    near = pytest.approx(ends["plain"]["eval_report"]["eval_loss_nats"], abs=0.01)
    assert ends["bf16"]["eval_report"]["eval_loss_nats"] == near
    assert (ends["bf16"]["sharding"]["precision"], ends["plain"]["sharding"]["precision"]) == ("bf16", "fp32")
    assert (ends["offload"]["sharding"]["offload"], ends["again"]["sharding"]["activation_checkpointing"]) == (
        True,
        True,
    )


@pytest.mark.long("a rank that is killed, three trainings")
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(folder: Path) -> None:
    starts = [Start("unbroken", acc()), Start("killed", acc(), kill_at=13), Start("killed", acc())]
    codes, said = train(folder, starts)
    assert (codes[0], codes[1][1], codes[2]) == ([0, 0], -9, [0, 0]), said
    assert codes[1][0] != 0
    assert "resuming from step 8" in said
    assert shards(folder / "killed") == shards(folder / "unbroken")


@pytest.mark.long("two trainings to refuse")
def test_a_class_that_the_model_has_not_is_named(folder: Path) -> None:
    text = (folder / "fsdp.yaml").read_text()
    (folder / "fsdp.yaml").write_text(f"{text}  fsdp_transformer_layer_cls_to_wrap: GPTBlock\n")
    codes, said = train(folder, [Start("wrong", acc())])
    assert 1 in codes[0], said
    assert 0 not in codes[0]
    assert "has no module of class GPTBlock" in said
    assert "LlamaDecoderLayer" in said


@pytest.mark.long("two trainings, one from the end of the other")
def test_a_pretrained_model_is_read_by_rank_0_and_is_whole(folder: Path) -> None:
    first = acc(steps=8)
    pretrained = {"path": "first/checkpoints/step_00000008/model"}
    again = {**acc(steps=2, learning_rate=1e-12, weight_decay=0.0), "model": pretrained}
    codes, said = train(folder, [Start("first", first), Start("again", again), Start("again", again, ranks=1)])
    assert codes == [[0, 0], [0, 0], [0]], said
    ends = [result(folder, name)["eval_report"]["eval_loss_nats"] for name in ("first", "again")]
    assert ends[1] == pytest.approx(ends[0], abs=1e-6)
    assert apart(whole(folder, "first", 8), whole(folder, "again", 2)) < 1e-6


@pytest.mark.long("five trainings of two ranks")
def test_adapters_alone_are_trained_and_kept_in_shards(folder: Path) -> None:
    (folder / "plain").symlink_to(f"base/checkpoints/step_{STEPS:08d}/model")
    lora = {"path": "plain", "lora": {"rank": 4, "dropout": 0.1}}
    tuned = {**acc(learning_rate=0.01), "model": lora}
    exact = {**tuned, "model": {**lora, "lora": {"rank": 4}}}
    starts = [Start("base", acc(0.0)), Start("unbroken", tuned), Start("broken", tuned, stop_at=STOP_AT)]
    starts += [Start("broken", tuned), Start("sharded", exact)]
    starts += [Start("ddp", {key: value for key, value in {**exact, "backend": "hf"}.items() if key != "config"})]
    codes, said = train(folder, [*starts, Start("sharded", exact)], ADAPTED)
    assert codes == [[0, 0], [0, 0], [143, 143], [0, 0], [0, 0], [0, 0], [0, 0]], said
    assert shards(folder / "broken") == shards(folder / "unbroken")
    told, by_ddp = (result(folder, name)["eval_report"] for name in ("sharded", "ddp"))
    assert told["trainable_parameters"] == by_ddp["trainable_parameters"] < told["parameters"] / 4
    assert (
        max(abs(value - losses(folder, "ddp", STEPS)[step]) for step, value in losses(folder, "sharded", STEPS).items())
        < 1e-5
    )
    assert told["eval_loss_nats"] == pytest.approx(by_ddp["eval_loss_nats"], abs=1e-5)
    assert told["eval_loss_nats"] < result(folder, "base")["eval_report"]["eval_loss_nats"] - 0.005
    made = folder / "unbroken" / FINAL
    assert (made / "model" / "adapter_model.safetensors").exists()
    names = pickle.loads((made / "__0.metadata").read_bytes()).state_dict_metadata
    assert all("lora_" in name for name in names if name.startswith("model.")) and len(names) > 50
    assert "adapters of what is loaded: True" in said
