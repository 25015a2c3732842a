"""The schema files are what the models say, and agree with the loader on the example files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nexa_dist.config.json_schema import MODELS, Kind, json_schema, main, schema_text
from nexa_dist.config.load import kind_of, load_cluster, load_train

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(p.relative_to(ROOT) for p in [*ROOT.glob("configs/[dt]*/*.yaml"), ROOT / "tests/cloud/cluster.yaml"])


AWS = {"name": "x", "provider": "aws", "nodes": 1, "gpus_per_node": 1, "max_hours": 6}


def valid(kind: Kind, data: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema(kind)).is_valid(data))


def test_files_are_up_to_date(tmp_path: Path) -> None:
    main([str(tmp_path)])
    for kind in MODELS:
        name = f"{kind}.schema.json"
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text == (tmp_path / name).read_text(encoding="utf-8") == schema_text(kind), (
            "write it anew: python -m nexa_dist.config.json_schema"
        )


@pytest.mark.parametrize("kind", MODELS)
def test_every_key_is_described(kind: Kind) -> None:
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema") and "$id" not in schema
    assert schema["title"] and schema["description"]
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        for key, value in part["properties"].items():
            assert value.get("description"), key


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
