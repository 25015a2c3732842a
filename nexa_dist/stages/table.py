"""The stages by name, and their modules. `python -m nexa_dist.stages.table [DIR]` writes the schema of their files."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pydantic.json_schema import models_json_schema

from nexa_dist.config.json_schema import as_text, headed
from nexa_dist.stages.contract import Stage

STAGES = {name: f"nexa_dist.stages.{name}" for name in ("data", "teach", "filter", "eval", "serve")}
"""Modules, opened lazily; each is a contract.Stage. `stage: train` is a train.yaml, and the work of train/."""


def open_stage(name: str) -> Stage:
    """The module of a stage."""
    return cast(Stage, import_module(STAGES[name]))


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of stage.yaml: its key `stage` says which other keys there are, so an editor names
    what is wrong with that one stage."""
    configs = {name: open_stage(name).Config for name in STAGES}
    found, rest = models_json_schema([(config, "validation") for config in configs.values()])
    stage = {"enum": list(STAGES), "description": "Which stage it is; train is a train.yaml."}
    schema = {
        "description": "A stage of a pipeline (docs/PIPELINE.md).",
        "type": "object",
        "properties": {"stage": stage},
        "required": ["stage"],
        "allOf": [
            {"if": {"properties": {"stage": {"const": name}}}, "then": found[config, "validation"]}
            for name, config in configs.items()
        ],
        "$defs": rest["$defs"],
    }
    return headed(schema, "stage.yaml")


def main(argv: list[str]) -> int:
    (Path(argv[0] if argv else "docs") / "stage.schema.json").write_text(as_text(json_schema()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
