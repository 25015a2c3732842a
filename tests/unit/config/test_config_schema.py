"""The schema files are what the models say, and agree with the loader on the example files."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nexa_dist.cli import main
from nexa_dist.config import json_schema as schemas
from nexa_dist.config.json_schema import MODELS
from nexa_dist.config.load import kind_of, load_cluster, load_train
from nexa_dist.stages import table

ROOT = Path(__file__).parents[3]
KINDS = (*MODELS, "stage")
EXAMPLES = sorted(p.relative_to(ROOT) for p in [*ROOT.glob("configs/[dt]*/*.yaml"), ROOT / "tests/cloud/cluster.yaml"])


AWS = {"name": "x", "provider": "aws", "nodes": 1, "gpus_per_node": 1, "max_hours": 6}


STAGES = sorted([*ROOT.glob("configs/stages/*.yaml"), *ROOT.glob("configs/pipelines/*.yaml")])


@functools.cache
def json_schema(kind: str) -> dict[str, Any]:
    return table.json_schema() if kind == "stage" else schemas.json_schema(kind)  # type: ignore[arg-type]


def valid(kind: str, data: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema(kind)).is_valid(data))


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_up_to_date(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--schema", kind]) == 0
    text = (ROOT / "docs" / f"{kind}.schema.json").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out, f"nexa config --schema {kind} > docs/{kind}.schema.json"


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind: str) -> None:
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema") and "$id" not in schema
    assert schema["title"] and schema["description"]
    parts = [*schema["$defs"].values(), *([schema] if kind != "stage" else [])]  # which is one of those, by its key
    for part in (part for part in parts if part.get("type") == "object" or "properties" in part):
        assert part["additionalProperties"] is False
        for key, value in part["properties"].items():
            section = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else {}
            assert value.get("description") or section.get("description"), key


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_every_example_loads_and_fits_its_schema(example: Path) -> None:
    path = ROOT / example
    kind = kind_of(path)
    (load_train if kind == "train" else load_cluster)(path)
    text = path.read_text(encoding="utf-8")
    assert valid(kind, yaml.safe_load(re.sub(r"\b(\d+)e-", r"\1.0e-", text)))
    first = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.splitlines()[0])
    assert first
    if example.parts[1] == "templates":
        assert first[1] == f".nexa/schema/{kind}.schema.json"
    else:
        assert (path.parent / first[1]).resolve() == ROOT / "docs" / f"{kind}.schema.json"


@pytest.mark.parametrize("example", STAGES, ids=lambda path: path.stem)
def test_a_stage_or_pipeline_of_ours_fits_its_schema(example: Path) -> None:
    kind, text = example.parent.name.removesuffix("s"), example.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema=../../docs/{kind}.schema.json\n")
    data = yaml.safe_load(text)
    assert valid(kind, data) and not valid(kind, {**data, "stagse": 1})


def test_the_stage_schema_has_the_keys_of_that_stage_alone() -> None:
    assert valid("stage", {"stage": "filter", "rules": []}) and not valid("stage", {"stage": "data", "rules": []})
    assert not valid("stage", {"stage": "train"}) and not valid("stage", {})
    step = {"config": "a.yaml", "min": {"DSS": 0.6}}
    assert valid("pipeline", {"pipeline": "p", "stages": {"a": step}})
    assert not valid("pipeline", {"pipeline": "p", "stages": {"a": {**step, "min": {"DSS": "high"}}}})


def test_the_examples_of_configs_are_among_those_checked() -> None:
    assert {str(p) for p in EXAMPLES} >= {
        f"configs/{name}.yaml"
        for name in (
            *("dist/8gpu", "dist/cheapest", "dist/local", "dist/own-hosts"),
            *("templates/cluster", "templates/train"),
        )
    }


@pytest.mark.parametrize(
    ("data", "good"),
    [
        ({"cluster": [{"host": "a", "gpus": 1}]}, True),
        ({"cluster": [{"host": "a", "gpus": 1}], "nodez": 1}, False),
        ({"cluster": [{"host": "a", "gpus": 1, "gpu": 1}]}, False),
        ({"cluster": []}, False),
        ({"cluster": [{"host": "-a", "gpus": 1}]}, False),
        ({"name": "x", "provider": "local", "nodes": 1, "gpus_per_node": 1}, True),
        ({"name": "x", "provider": "local", "nodes": 1, "gpus_per_node": 1, "max_hours": None}, False),
        ({"name": "x", "provider": "local", "nodes": 65, "gpus_per_node": 1}, False),
        ({"name": "x", "provider": "local", "nodes": 1}, False),
        ({**AWS, "offers": "cheapest"}, True),
        ({**AWS, "offers": [{"type": "g5.large"}]}, True),
        ({**AWS, "offers": [{"kind": "g5.large"}]}, False),
        ({**AWS, "region": "us-east-1", "ssh_from": ["198.51.100.7/32"], "state": "s3://team/nexa"}, True),
        ({**AWS, "region": "us-east-1a"}, False),
        ({key: value for key, value in AWS.items() if key != "max_hours"}, False),
        ({**AWS, "provider": "static"}, False),
    ],
)
def test_the_cluster_schema_tells_good_files_from_bad(data: dict[str, Any], good: bool) -> None:
    assert valid("cluster", data) is good


def test_train_schema_refuses_unknown_keys() -> None:
    assert valid("train", {"name": "x", "script": "a.py"})
    assert not valid("train", {"name": "x", "script": "a.py", "scripts": "b.py"})
    assert not valid("train", {"name": "x", "backend": "hf", "trainer": {"step": 1}})
