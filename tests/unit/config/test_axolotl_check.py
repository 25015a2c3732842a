"""An Axolotl file on the laptop, where there is no Axolotl."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nexa_dist.config.backend_files.axolotl import check, known, read
from nexa_dist.config.load import load_train
from nexa_dist.errors import ConfigError

ROOT = Path(__file__).parents[3]
GOOD = "base_model: model\nadapter: lora\ndatasets:\n  - path: a.jsonl\n    ds_type: json\n    type: alpaca\n"


def said(text: str) -> str:
    try:
        check("ax.yaml", (GOOD + text).encode())
    except ConfigError as error:
        return str(error)
    return ""


def test_the_file_that_is_shipped_has_nothing_wrong() -> None:
    train = load_train(ROOT / "configs" / "train" / "axolotl.yaml")
    assert (train.backend, train.environment) == ("ax", "heavy") and train.config
    check(train.config, (ROOT / train.config).read_bytes())
    assert len(yaml.safe_load((ROOT / train.config).read_text())) > 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lerning_rate: 3\n", "ax.yaml:7: lerning_rate: unknown key of Axolotl (hint: did you mean learning_rate?)"),
        (
            "  - path: b\n    tpye: x\n",
            "ax.yaml:8: datasets[1].tpye: unknown key of Axolotl (hint: did you mean type",
        ),
        ("fsdp_config:\n  offload_param: true\n", "ax.yaml:8: fsdp_config.offload_param: unknown key of Axolotl"),
        ("fsdp_config:\n  offload_params: true\ndeepspeed: z.json\n", "ax.yaml:7: fsdp_config: deepspeed is there too"),
        ("load_best_model_at_end: true\n", "load_best_model_at_end: has no place in a run"),
        ("plugins: [axolotl.integrations.liger.LigerPlugin]\nliger_rop: true\n", "did you mean liger_rope?"),
        ("adapter: qlora\n", "adapter"),
    ],
)
def test_what_axolotl_would_take_in_silence_is_refused_with_its_line(text: str, words: str) -> None:
    assert words in said(text)


@pytest.mark.parametrize(
    "text",
    [
        "special_tokens:\n  pad_token: <pad>\nwandb_project:\n",
        "deepspeed: ./configs/z.json\n",
        "deepspeed: /workspace/z.json\n",
        "plugins: [axolotl.integrations.liger.LigerPlugin]\nliger_rope: true\n",
        "plugins: [lab.plugin.Mine]\nanything: true\n",
        "lr_scheduler_kwargs: {min_lr: 1e-6}\nload_best_model_at_end: false\n",
        "fsdp_config:\n  offload_params: true\n",
    ],
)
def test_what_axolotl_knows_is_let_through(text: str) -> None:
    assert said(text) == ""


def test_an_optimizer_on_a_disk_which_could_not_be_resumed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ax.yaml").write_text(GOOD + "deepspeed: zero.json\n")
    (tmp_path / "t.yaml").write_text("backend: ax\nconfig: ax.yaml\n")
    zero = '{"zero_optimization": {"stage": 3,\n "offload_optimizer": {"device": "%s"}}}'
    (tmp_path / "zero.json").write_text(zero % "cpu")
    assert read(load_train(tmp_path / "t.yaml")).files == ("zero.json",)
    (tmp_path / "zero.json").write_text(zero % "nvme")
    words = r"zero\.json:2: zero_optimization\.offload_optimizer\.device: an optimizer on a disk cannot be resumed"
    with pytest.raises(ConfigError, match=words):
        load_train(tmp_path / "t.yaml")


def test_every_fault_is_told_at_once_and_a_model_is_needed() -> None:
    with pytest.raises(ConfigError) as caught:
        check("ax.yaml", b"microbatch_size: 2\nsequence_length: 3\n")
    told = str(caught.value).splitlines()
    assert "ax.yaml:1: microbatch_size" in str(caught.value) and "did you mean micro_batch_size?" in str(caught.value)
    assert sum("unknown key" in line for line in told) == 2 and sum("is missing" in line for line in told) == 2


def test_the_list_is_of_the_axolotl_that_is_locked() -> None:
    lock = (ROOT / "docker" / "lock" / "heavy.txt").read_text()
    assert f"\naxolotl=={known()['version']} " in lock and len(known()["keys"][""]) > 300
