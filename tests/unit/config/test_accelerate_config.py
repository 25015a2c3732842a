"""The YAML of `accelerate config` as backend acc reads it: every key of the installed accelerate, and no other."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest

from nexa_dist.config.backend_files.accelerate import AccelerateConfig, FsdpConfig, read
from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import ConfigError

REPO = Path(__file__).parents[3]
TRAIN = """
backend: acc
config: fsdp.yaml
model: {vocab_size: 300, hidden_size: 16, layers: 1, heads: 2, intermediate_size: 32}
dataset: {source: path, path: texts}
trainer: {steps: 4}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(fsdp: str = "fsdp_version: 2", more: str = "distributed_type: FSDP", *words: str) -> TrainConfig:
    Path("train.yaml").write_text(TRAIN)
    Path("fsdp.yaml").write_text(f"{more}\nfsdp_config:\n{indent(fsdp, '  ')}\n")
    return load_train(Path("train.yaml"), words)


def said(*parts: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        train(*parts)
    return [str(problem) for problem in caught.value.problems]


def test_the_examples_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    config = load_train(Path("configs/train/fsdp.yaml"))
    assert read(config).fsdp_config.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
    whole = read(load_train(Path("configs/train/fsdp.yaml"), ["config=configs/acc/fsdp_4gpu.yaml"]))
    assert (whole.mixed_precision, whole.fsdp_config.fsdp_offload_params) == ("bf16", True)
    assert [words.partition(" ")[0] for words in whole.unused] == ["machine_rank", "num_machines", "num_processes"]


def test_from_a_folder_below_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert read(config).fsdp_config.fsdp_reshard_after_forward


def test_a_slip_is_told_with_its_line_and_the_nearest_key() -> None:
    assert said("fsdp_version: 2\nfsdp_ofload_params: true", "distributed_type: FSDP\nmixd_precision: bf16") == [
        "fsdp.yaml:2: mixd_precision: unknown key (hint: did you mean mixed_precision?)",
        "fsdp.yaml:5: fsdp_config.fsdp_ofload_params: unknown key (hint: did you mean fsdp_offload_params?)",
    ]


def test_a_key_without_its_prefix_is_the_same_key() -> None:
    assert read(train("version: 2\noffload_params: true")).fsdp_config.fsdp_offload_params
    (one,) = said("fsdp_version: 2\noffload_params: true\nfsdp_offload_params: true")
    assert "are one key" in one


@pytest.mark.parametrize(
    ("fsdp", "more", "words"),
    [
        ("fsdp_version: 1", "", "write fsdp_version: 2"),
        ("fsdp_offload_params: true", "", "fsdp_version"),
        ("fsdp_version: 2\nfsdp_reshard_after_forward: FULL_SHARD", "", "true for FULL_SHARD"),
        ("fsdp_version: 2\nfsdp_sharding_strategy: SHARD_GRAD_OP", "", "false for SHARD_GRAD_OP"),
        ("fsdp_version: 2\nfsdp_transformer_layer_cls_to_wrap: A", "", "needs fsdp_auto_wrap_policy"),
        ("fsdp_version: 2", "mixed_precision: fp16", "bf16"),
        ("fsdp_version: 2", "deepspeed_config: {zero_stage: 3}", "backend: ds"),
        ("fsdp_version: 2", "dynamo_config: {dynamo_backend: INDUCTOR}", "runs FSDP2 alone"),
    ],
)
def test_what_it_would_not_do_is_refused_with_what_to_write(fsdp: str, more: str, words: str) -> None:
    assert any(words in line for line in said(fsdp, f"distributed_type: FSDP\n{more}"))


def test_other_kinds_are_refused() -> None:
    assert "FSDP" in said("fsdp_version: 2", "distributed_type: MULTI_GPU")[0]


def test_it_contradicts_train_yaml() -> None:
    assert said("fsdp_version: 2", "distributed_type: FSDP\nmixed_precision: no", "trainer.precision=bf16") == [
        "fsdp.yaml: mixed_precision: mixed_precision is no, and trainer.precision of train.yaml is bf16"
        " (hint: write bf16, or leave one of them out)"
    ]
    assert train("fsdp_version: 2", "distributed_type: FSDP", "trainer.precision=bf16").trainer is not None


def test_what_has_no_effect_is_said() -> None:
    more = "distributed_type: FSDP\nnum_processes: 4\nmain_process_ip: 10.0.0.1\ntpu_env: []\ndowncast_bf16: 'no'"
    assert read(train("fsdp_version: 2\nfsdp_use_orig_params: true", more)).unused == [
        "fsdp_use_orig_params (FSDP2 has no flat parameters)",
        "main_process_ip (set by the launcher)",
        "num_processes (set by the launcher)",
    ]


def test_a_file_that_is_not_there() -> None:
    Path("train.yaml").write_text(TRAIN)
    with pytest.raises(ConfigError, match=r"fsdp.yaml: cannot be read"):
        load_train(Path("train.yaml"))


def test_the_keys_are_those_of_the_installed_accelerate() -> None:
    args = pytest.importorskip("accelerate.commands.config.config_args")
    launch = pytest.importorskip("accelerate.commands.launch")
    fields = {*args.ClusterConfig.__dataclass_fields__} | {"fp16", "dynamo_backend"}  # two of older files
    assert {*AccelerateConfig.model_fields} == fields
    options = {action.dest for action in launch.launch_command_parser()._actions}
    known = {name for name in options if name.startswith("fsdp_")} | {"fsdp_ignored_modules"}  # of the file alone
    assert {*FsdpConfig.model_fields} == known
