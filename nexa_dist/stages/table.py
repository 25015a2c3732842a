"""The stages by name, and the schema of their files."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from nexa_dist.config.json_schema import headed
from nexa_dist.stages.contract import Stage

STAGES = {
    "data": Stage("nexa_dist.stages.data.config:DataConfig", "nexa_dist.stages.data.steps", format=2),
    "teach": Stage("nexa_dist.stages.teach.config:TeachConfig", "nexa_dist.stages.teach.asking"),
    "filter": Stage("nexa_dist.stages.filter.config:FilterConfig", "nexa_dist.stages.filter.sorting"),
    "eval": Stage("nexa_dist.stages.eval.config:EvalConfig", "nexa_dist.stages.eval.work"),
    "serve": Stage("nexa_dist.stages.serve.config:ServeConfig", "nexa_dist.stages.serve.answering"),
}
"""`stage: train` is a train.yaml, and the work of train/."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of stage.yaml: its key `stage` says which other keys there are, so an editor names
    what is wrong with that one stage."""
    configs = {name: stage.model for name, stage in STAGES.items()}
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
