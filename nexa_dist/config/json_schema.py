"""JSON Schema of the config files, for editors: what `nexa config --schema KIND` prints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.manifest import Manifest
from nexa_dist.config.pipeline import PipelineConfig
from nexa_dist.config.train import TrainConfig

Kind = Literal["cluster", "train", "manifest", "pipeline"]
MODELS: dict[Kind, type[BaseModel]] = {
    "cluster": ClusterConfig,
    "train": TrainConfig,
    "manifest": Manifest,
    "pipeline": PipelineConfig,
}
"""Those of stages are their rooms' own: nexa_dist/stages/table.py."""


def json_schema(kind: Kind) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of cluster.yaml, train.yaml, pipeline.yaml or a run's manifest, without $id."""
    model = MODELS[kind]
    schema = model.model_json_schema()
    # Without a file there is no file name to take the name from, but a file always has one.
    if kind == "cluster":
        schema["required"] = [key for key in schema.get("required", []) if key != "name"]
        _drop_null(schema)
    if not schema.get("required"):
        schema.pop("required", None)
    return headed(schema, f"{kind}{'.json' if kind == 'manifest' else '.yaml'}")


def headed(schema: dict[str, Any], file: str) -> dict[str, Any]:
    """The schema with its dialect and the title of such a file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"NexaCompute {file}"}


def _drop_null(node: Any) -> None:
    """An optional key may be left out; written without a value it is refused."""
    if isinstance(node, list):
        for item in node:
            _drop_null(item)
    elif isinstance(node, dict):
        kinds = [kind for kind in node.get("anyOf", []) if kind != {"type": "null"}]
        if "anyOf" in node and len(kinds) == 1:
            del node["anyOf"]
            node.update({**kinds[0], **node})
        if node.get("default", "") in (None, []):
            del node["default"]
        for item in node.values():
            _drop_null(item)
