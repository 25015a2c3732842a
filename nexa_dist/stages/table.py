"""The stages by name, and their modules."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from nexa_dist.stages.contract import Stage

STAGES: dict[str, str] = {
    "data": "nexa_dist.stages.data",
    "teach": "nexa_dist.stages.teach",
    "filter": "nexa_dist.stages.filter",
    "eval": "nexa_dist.stages.eval",
    "serve": "nexa_dist.stages.serve",
}
"""Modules, opened lazily; each is a contract.Stage. `stage: train` is a train.yaml, and the work of train/."""


def open_stage(name: str) -> Stage:
    """The module of a stage."""
    return cast(Stage, import_module(STAGES[name]))
