"""train.yaml's schema: what it takes, and how it words what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nexa_dist.config.train import TrainConfig

MODEL = {"vocab_size": 300, "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}
HF: dict[str, Any] = {"name": "t", "backend": "hf", "model": MODEL, "dataset": {}, "trainer": {"steps": 4}}
DISTILLED = {"model": {"path": "m"}, "trainer": {"steps": 1, "use_kd": True, "kd_teacher": "t"}}


def refused(value: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(value)
    return str(caught.value)


def test_the_quickstart_is_valid() -> None:
    path = Path(__file__).parents[3] / "configs" / "train" / "quickstart.yaml"
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=../../docs/train.schema.json\n")
    config = TrainConfig.model_validate(yaml.safe_load(text))
    assert config.name == "quickstart"
    assert config.wandb == "off"


def test_what_is_resolved_can_be_read_again() -> None:
    for value in (HF, {"name": "t", "script": "a b.py", "args": ["--x", "$(id)"], "env": {"A": "1"}}):
        config = TrainConfig.model_validate(value)
        assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("value", [{"script": "a.py"}, {"module": "pkg.mod"}])
def test_any_script_or_module(value: dict[str, Any]) -> None:
    assert TrainConfig.model_validate({"name": "t", **value}).backend is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": None}, "exactly one of backend, script, module, program is needed: found none"),
        ({"script": "a.py"}, "found backend and script"),
        ({"model": None}, "backend: hf needs model"),
        ({"args": ["x"]}, "args are for script, module or program"),
        ({"name": "Bad Name"}, "should match pattern"),
        ({"name": "good\n"}, "should match pattern"),
        ({"nam": 1}, "Extra inputs are not permitted"),
        ({"env": {"A-B": "1"}}, "no environment variable name"),
        ({"env": {"A\n": "1"}}, "no environment variable name"),
        ({"env": {"A": "x\0y"}}, "NUL byte"),
        ({"max_hours": float("inf")}, "finite number"),
        ({"wandb": "on"}, "'off', 'offline' or 'online'"),
        ({"model": {**MODEL, "path": "m"}}, "path brings its own shape: remove vocab_size"),
        ({"model": {"path": "m", "dropout": 0.1}}, "remove dropout"),
        ({"model": {}}, "needs vocab_size, hidden_size"),
        ({"model": {"tokenizer": "m"}}, "needs hidden_size, layers"),
        ({"model": {**MODEL, "tokenizer": "m"}}, "tokenizer has its own vocabulary: remove vocab_size"),
        ({"model": {"path": "m", "tokenizer": "m"}}, "path brings its own shape: remove tokenizer"),
        ({"model": {**MODEL, "heads": 3}}, "must be an even whole number"),
        ({"dataset": {"source": "path"}}, "needs path"),
        ({"dataset": {"path": "d"}}, "takes no path"),
        ({"dataset": {"source": "examples"}}, "needs path"),
        ({"model": {**MODEL, "lora": {}}}, "lora needs path"),
        ({"dataset": {"source": "path", "path": "-rf"}}, "must not begin with '-'"),
        ({"trainer": {"steps": 4, "warmup_steps": 5}}, "warmup_steps 5 is more than steps 4"),
        ({"trainer": {"steps": 0}}, "greater than or equal to 1"),
        ({"trainer": {"steps": 1, "kd_lambda": 0.25}}, "kd_lambda means nothing without use_kd: true"),
        ({"trainer": {"steps": 1, "use_kd": True, "kd_lambda": 1.5}}, "less than or equal to 1"),
        ({"trainer": {"steps": 1, "use_kd": True, "kd_teacher": "t"}}, "use_kd needs model.path or model.tokenizer"),
        ({"model": {"path": "m"}, "trainer": {"steps": 1, "use_kd": True}}, "use_kd needs kd_teacher, or dataset"),
        ({**DISTILLED, "backend": "ds", "config": "c.json"}, "backend: ds takes no trainer.use_kd; hf and acc do"),
        (
            {"model": {"path": "m"}, "trainer": {"steps": 1, "use_kd": True, "kd_teacher": "$NEXA_DATA/t"}},
            "trainer.kd_teacher is $NEXA_DATA/t, and data has no t",
        ),
    ],
)
def test_a_training_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    assert message in refused({**HF, **change})


@pytest.mark.parametrize(
    "name", ["NEXA_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"]
)
def test_the_launchers_variables_are_refused(name: str) -> None:
    assert "set by the launcher" in refused({**HF, "env": {name: "1"}})


@pytest.mark.parametrize(
    "value",
    [
        {"script": "-oProxyCommand=x"},
        {"script": "a\nb.py"},
        {"script": ""},
        {"module": "-m"},
        {"module": "a b"},
        {"module": "a."},
        {"module": "os;id"},
        {"module": "a\n"},
    ],
)
def test_hostile_programs_are_refused(value: dict[str, Any]) -> None:
    refused({"name": "t", **value})


def test_sections_of_a_backend_do_not_go_with_a_script() -> None:
    assert "max_tokens is for a backend" in refused({"name": "t", "script": "a.py", "max_tokens": 5})
    assert "model belong to a backend, not to script" in refused({"name": "t", "script": "a.py", "model": MODEL})


def test_every_field_is_described() -> None:
    schema = TrainConfig.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        assert all("description" in field for field in section["properties"].values())


def test_a_path_below_the_runs_data_names_some_of_it() -> None:
    sections = {"name": "t", "backend": "hf", "trainer": {"steps": 1}, "dataset": {"source": "python-stdlib"}}
    model = {"model": {"path": "$NEXA_DATA/llama/7b"}}
    assert "model.path is $NEXA_DATA/llama/7b, and data has no llama" in refused({**sections, **model})
    TrainConfig.model_validate({**sections, **model, "data": {"llama": "./llama"}})


BOXED: dict[str, Any] = {"name": "t", "script": "a.py", "image": "ghcr.io/lab/x:1@sha256:" + "a" * 64}


def test_an_image_is_the_environment_and_can_be_read_again() -> None:
    for value in (BOXED, {**HF, "image": "x", "engine": "/opt/bin/podman"}):
        config = TrainConfig.model_validate(value)
        assert config.environment == "none"
        assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"environment": "heavy"}, "environment is not for a run in an image"),
        ({"apt": ["gcc"], "setup": ["make"]}, "apt, setup cannot change an image"),
        ({"install": True}, "install cannot change an image"),
        ({"launcher": "direct"}, "the ranks have the image's"),
        ({"image": None, "engine": "podman"}, "engine is of no use without image"),
        ({"engine": "lxc"}, "expected auto, docker, podman"),
        ({"engine": "bin/podman"}, "or the absolute path"),
        ({"image": "--privileged"}, "image"),
        ({"image": "a b"}, "image"),
    ],
)
def test_what_does_not_go_with_an_image(more: dict[str, Any], says: str) -> None:
    assert says in refused({**BOXED, **more})
