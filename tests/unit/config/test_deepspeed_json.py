"""The user's DeepSpeed JSON: what is refused of it, with the line, and what DeepSpeed gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.backend_files import deepspeed
from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.work import OwnEnvironment
from nexa_dist.errors import ConfigError
from nexa_dist.train.backends import ds_ops

REPO = Path(__file__).resolve().parents[3]
SHIPPED = sorted((REPO / "configs" / "deepspeed").glob("*.json"))
TRAIN = {
    "backend": "ds",
    "model": {"vocab_size": 512, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64},
    "dataset": {"sequence_length": 32},
    "trainer": {"steps": 9, "batch_size": 4, "learning_rate": 3e-3},
}


def train_yaml(folder: Path, text: str, *sets: str) -> TrainConfig:
    """What is read of a training whose `config` has this text."""
    (folder / "ds.json").write_text(text)
    (folder / "train.json").write_text(json.dumps({**TRAIN, "config": str(folder / "ds.json")}))
    return load_train(folder / "train.json", sets)


def faults(folder: Path, text: str, *sets: str) -> dict[str, str]:
    """Line and key to what is said of them."""
    with pytest.raises(ConfigError) as caught:
        train_yaml(folder, text, *sets)
    assert all(p.file == str(folder / "ds.json") for p in caught.value.problems)
    return {f"{p.line} {p.path}".strip(): f"{p.message} | {p.hint}" for p in caught.value.problems}


def test_every_fault_comes_at_once_with_its_line_and_the_nearest_key(tmp_path: Path) -> None:
    text = """{
\t"train_micro_batch_size_per_gpu": 16,
  "zero_optimisation": {},
  "scheduler": {"type": "WarmupLR"},
  "bf16": {"enabled": true},
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95]}},
  "zero_optimization": {
    "stage": 2, "overlap_com": true,
    "reduce_bucket_size": 5e8,
    "offload_param": {"device": "nvme"}
  }
}"""
    found = faults(tmp_path, text)
    assert "makes it 4" in found.pop("2 train_micro_batch_size_per_gpu")
    assert "did you mean zero_optimization?" in found.pop("3 zero_optimisation")
    assert "a cosine" in found.pop("4 scheduler")
    assert "true, and trainer.precision: fp32 makes it false" in found.pop("5 bf16.enabled")
    assert "0.0001, and trainer.learning_rate makes it 0.003" in found.pop("6 optimizer.params.lr")
    assert "did you mean overlap_comm?" in found.pop("8 zero_optimization.overlap_com")
    assert "nvme_path go together" in found.pop("10 zero_optimization.offload_param")
    assert not found


@pytest.mark.parametrize(
    ("text", "sets", "where", "words"),
    [
        ('{"zero_optimization": {"stage": 4}}', (), "1 zero_optimization.stage", "expected"),
        ("{}", (), "1 zero_optimization", "missing"),
        ('{"zero_optimization": {"stage": 3}, "zero_optimization": {}}', (), "0", "twice"),
        ('{\n"zero_optimization": {"stage": 3},\n}', (), "3", "not JSON"),
        ("[1]", (), "1", "must be an object"),
        ("[" * 100_000, (), "0", "nested"),
        ('{"zero_optimization": {"stage": 3}, "steps_per_print": Infinity}', (), "0", "no number"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}',
            (), "1 zero_optimization", "needs stage 3",
        ),
        ('{"zero_optimization": {"stage": 3}, "train_batch_size": 7}', (), "1 train_batch_size", "no multiple"),
        (
            '{"zero_optimization": {"stage": 3}, "gradient_accumulation_steps": 2}',
            (), "1 gradient_accumulation_steps", "a step of train.yaml makes it 1",
        ),
        ('{"zero_optimization": {"stage": 3}}', ("trainer.async_save=true",), "0", "async_save"),
        (
            '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},'
            '\n"zero_force_ds_cpu_optimizer": true}',
            (), "2 zero_force_ds_cpu_optimizer", "torch's AdamW",
        ),
        (
            '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": false}}',
            (), "1 zero_optimization", "transformers loads",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, sets: tuple[str, ...], where: str, words: str) -> None:
    found = faults(tmp_path, text, *sets)
    key = where.removesuffix(" ")
    assert words in found[key], found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_is_read_and_auto_becomes_what_train_yaml_says(path: Path, tmp_path: Path) -> None:
    config = train_yaml(tmp_path, path.read_text(), "trainer.precision=bf16")
    made = deepspeed.settings(config, 6, Path("/scratch/run_1"))
    assert (made["train_batch_size"], made["train_micro_batch_size_per_gpu"]) == (24, 4)
    assert made["bf16"]["enabled"] is True and made["gradient_clipping"] == deepspeed.CLIPPING
    zero = made["zero_optimization"]
    assert zero["stage"] == int(path.stem.removeprefix("zero")[0])
    places = {zero.get(part, {}).get("nvme_path") for part in ("offload_param", "offload_optimizer")}
    assert places == ({"/scratch/run_1/nvme", None} if "nvme" in path.stem else {None})
    assert zero.get("stage3_gather_16bit_weights_on_model_save", zero["stage"] < 3) is True
    assert config.environment == OwnEnvironment(packages=("deepspeed==0.19.8",))


def test_a_disk_of_the_users_own_gets_a_folder_a_run_and_a_batch_must_fit_the_ranks(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/mnt/disk"}}
    config = train_yaml(tmp_path, json.dumps({"train_batch_size": 16, "zero_optimization": zero}))
    made = deepspeed.settings(config, 4, Path("/scratch/run_1"))
    assert made["zero_optimization"]["offload_param"]["nvme_path"] == "/mnt/disk/run_1/nvme"
    with pytest.raises(ConfigError, match=r"2 ranks × trainer\.batch_size 4 make it 8"):
        deepspeed.settings(config, 2, Path("/scratch/run_1"))


def test_only_what_the_file_leads_to_is_compiled(tmp_path: Path) -> None:
    def names(zero: dict[str, Any], *, cuda: bool, **more: Any) -> list[str]:
        text = json.dumps({"zero_optimization": {"stage": 3, **zero}, **more})
        return ds_ops.needed(deepspeed.read(train_yaml(tmp_path, text)), cuda=cuda)

    cpu, nvme = {"offload_optimizer": {"device": "cpu"}}, {"offload_param": {"device": "nvme", "nvme_path": "auto"}}
    own = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
    assert names({}, cuda=True) == names(cpu, cuda=False) == []
    assert names(nvme, cuda=False) == ["AsyncIOBuilder"]
    assert names(cpu, cuda=True, **own) == ["CPUAdamBuilder"]
    assert names({}, cuda=True, **own) == ["FusedAdamBuilder"]


def test_a_backend_without_its_file_or_with_a_missing_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(TRAIN))
    with pytest.raises(ConfigError, match=r"backend: ds needs config"):
        load_train(tmp_path / "t.json")
    with pytest.raises(ConfigError, match=r"nowhere\.json: cannot be read"):
        load_train(tmp_path / "t.json", [f"config={tmp_path}/nowhere.json"])
