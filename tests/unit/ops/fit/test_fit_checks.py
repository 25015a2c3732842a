"""What has to fit beside memory, a row each; and what a train.yaml with another program's file asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.ops.fit import checks
from nexa_dist.ops.fit.asked import Asked, asked
from nexa_dist.plan.fit.method import METHODS, Work
from nexa_dist.plan.fit.model_shape import read
from tests.unit.plan.fit.known_models import KNOWN

SHAPE = read({**KNOWN["GPT-2"][0]}, "")
WORK = Work("fp32", 1, 1, 2048)


def test_a_sequence_has_positions() -> None:
    assert checks.positions(SHAPE, WORK).ok is False
    assert checks.positions(SHAPE, Work("fp32", 1, 1, 1024)).ok is True


@pytest.mark.parametrize(
    ("made", "ok", "said"),
    [
        ({"model": {"vocab": {"a": 0, "b": 50256}}, "added_tokens": []}, True, "ids up to 50256 of 50257"),
        (
            {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 50257}]},
            False,
            "ids up to 50257, and the model's table",
        ),
        ({"model": {"vocab": [["a", -1.0]] * 50258}}, False, "ids up to 50257"),
        ({"model": {}}, False, "cannot be read"),
        (None, None, "has no tokenizer.json on this machine"),
    ],
)
def test_a_tokenizer_fits_the_vocabulary(tmp_path: Path, made: Any, ok: bool | None, said: str) -> None:
    if made is not None:
        tmp_path.joinpath("tokenizer.json").write_text(json.dumps(made))
    row = checks.tokenizer(SHAPE, str(tmp_path))
    assert row.ok is ok and said in row.said and bool(row.next) is (ok is False)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"text": "a"}, ""),
        ({"messages": [{"role": "user", "content": "a"}]}, ""),
        ({"conversations": [{"from": "human", "value": "a"}]}, ""),
        ({"prompt": "a", "completion": "b"}, ""),
        ({"text": 5}, "text is no text"),
        ({"messages": [{"role": "user"}]}, "a turn of messages lacks role or content"),
        ({"messages": []}, "messages is no list of turns"),
        ({"txt": "a"}, "has none of text, messages, prompt, instruction (it has txt)"),
        ([1], "not a JSON object"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(tmp_path: Path, row: Any, wrong: str) -> None:
    tmp_path.joinpath("d.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = checks.data(("d.jsonl",), tmp_path)
    assert found.ok is (wrong == "") and found.said.endswith(wrong or "1 lines of 1 files looked at")


def test_rows_are_looked_at_anywhere_in_a_file(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "a"})] * 20 + ["{torn"] * 20 + [json.dumps({"text": "a"})] * 20
    tmp_path.joinpath("d.jsonl").write_text("\n".join(rows))
    (found,) = checks.data(("d.jsonl",), tmp_path)
    assert found.ok is False and "the line at byte" in found.said and "not JSON" in found.said
    tmp_path.joinpath("t.txt").write_bytes(b"fine\n" + b"bad \xff byte\n" * 50)
    (found,) = checks.data((str(tmp_path / "t.txt"),), tmp_path)
    assert found.ok is False and "not UTF-8" in found.said
    assert checks.data(("gone",), tmp_path)[0].ok is None


def test_checkpoints_fit_the_disk() -> None:
    large = read(KNOWN["Llama-2-7B"][0], "")
    row = checks.disk(large, WORK, 1, 2, 0, 200.0)
    assert row.ok is False and row.next == "volume_gb: 304 in the cluster's file"
    assert checks.disk(large, WORK, 1, 2, 0, 304.0).ok is True
    assert checks.disk(large, WORK, 1, 2, 0, None).ok is None


def test_what_is_asked_comes_from_the_file_or_as_if_another_backend_did_it(tmp_path: Path) -> None:
    shape = {"vocab_size": 512, "hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 128}
    config = TrainConfig.model_validate(
        {"backend": "hf", "model": shape, "dataset": {"source": "path", "path": "d"},
         "trainer": {"steps": 10, "precision": "fp32"}, "data": {"a": "x", "b": "s3://bucket/x"}}
    )  # fmt: skip
    wanted = asked(config, tmp_path)
    assert wanted.work.method == METHODS["hf"] and wanted.steps == 10
    assert (wanted.data, wanted.other) == (("d",), ("x",))
    other = asked(config, tmp_path, "ax-qlora").work
    assert other.method == METHODS["ax-qlora"] and other.precision == "bf16"
    assert asked(config, tmp_path, "acc").work.precision == "fp32"


def of_backend(folder: Path, backend: str, name: str, text: str, **more: Any) -> Asked:
    """As a train.yaml of that backend asks for it, with its own file."""
    folder.joinpath(name).write_text(text)
    shape = {"vocab_size": 512, "hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 128}
    config = TrainConfig.model_validate(
        {"backend": "hf", "model": shape, "dataset": {}, "trainer": {"steps": 10, **more}}
    )
    return asked(config.model_copy(update={"backend": backend, "config": name}), folder)


def test_the_file_of_another_program_says_how_it_is_trained(tmp_path: Path) -> None:
    text = "distributed_type: FSDP\nmixed_precision: bf16\nfsdp_config: {fsdp_version: 2, fsdp_offload_params: true}\n"
    wanted = of_backend(tmp_path, "acc", "fsdp.yaml", text)
    assert wanted.work.method.title == "backend acc, FSDP2, optimizer and parameters in CPU"
    assert wanted.work.precision == "bf16" and wanted.work.method.weights == "fp32"
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme"}, "reduce_bucket_size": "auto"}
    text = json.dumps({"bf16": {"enabled": "auto"}, "zero_optimization": zero})
    for precision in ("fp32", "bf16"):
        wanted = of_backend(tmp_path, "ds", "ds.json", text, precision=precision)
        assert wanted.work.method.title == "backend ds, ZeRO-3, optimizer in NVME"
        assert (wanted.work.precision, wanted.work.method.weights) == (precision, precision)
    assert of_backend(tmp_path, "ds", "ds.json", '{"bf16": {"enabled": true}}').work.precision == "bf16"
    assert of_backend(tmp_path, "ds", "ds.json", "{torn").work.method.sharding == "zero3"


def test_an_axolotl_file_says_all_of_it(tmp_path: Path) -> None:
    text = (
        "base_model: /models/llama\nadapter: qlora\nload_in_4bit: true\nlora_r: 32\nlora_target_linear: true\n"
        "bf16: true\ngradient_checkpointing: true\nsequence_len: 4096\nmicro_batch_size: 2\n"
        "gradient_accumulation_steps: 4\nmax_steps: 100\ndatasets: [{path: chat.jsonl, type: chat_template}]\n"
    )
    wanted = of_backend(tmp_path, "ax", "ax.yaml", text)
    assert (wanted.path, wanted.steps, wanted.data) == ("/models/llama", 100, ("chat.jsonl",))
    assert wanted.work.method.title == "backend ax, DDP, QLoRA of rank 32, checkpointing"
    assert (wanted.work.tokens, wanted.work.windows) == (8192, 4)
    tmp_path.joinpath("ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert of_backend(tmp_path, "ax", "ax.yaml", text + "deepspeed: ds.json\n").work.method.sharding == "zero2"


def test_rows_of_our_own_trainer_are_held_to_what_it_reads(tmp_path: Path) -> None:
    lines = tmp_path / "d.jsonl"
    lines.write_text('{"instruction": "Name a metal.", "output": "tin"}\n')
    assert checks.data(("d.jsonl",), tmp_path)[0].ok
    (found,) = checks.data(("d.jsonl",), tmp_path, ours="d.jsonl")
    assert found.ok is False
    assert "line 1: no text under prompt, completion; its keys: instruction, output" in found.said
    lines.write_text('{"prompt": "Name a metal: ", "completion": "tin"}\n')
    assert checks.data(("d.jsonl",), tmp_path, ours="d.jsonl")[0].ok


def test_of_what_a_run_brings_beside_its_text_only_rows_are_looked_at(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"\xff\x00" * 99)
    assert checks.data((), tmp_path, other=("model",)) == []
    (model / "rows.jsonl").write_text("{torn")
    assert checks.data((), tmp_path, other=("model",))[0].ok is False
