"""Reads stage.yaml: every fault at once, with file, line and key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nexa_dist.config.load import Reading, read_other
from nexa_dist.config.problems import nearest, problem_at
from nexa_dist.config.train import name_of
from nexa_dist.config.yaml.file import display_name, parse_yaml, read_bytes
from nexa_dist.config.yaml.tree import Document
from nexa_dist.errors import ConfigError, Problem
from nexa_dist.stages.contract import StageConfig
from nexa_dist.stages.table import STAGES


def stage_of(path: Path) -> str:
    """The stage that a file is of; train where it names none. Raises ConfigError for one that there is not."""
    data = read_bytes(path)
    if b"stage" not in data:
        return "train"
    document = parse_yaml(data, display_name(path))
    found = document.data.get("stage", "train")
    if found != "train" and found not in STAGES:
        words, hint = f"there is no stage {str(found)[:64]!r}", nearest(str(found), [*STAGES, "train"])
        raise ConfigError([problem_at(("stage",), words, hint, document)])
    return str(found)


def load_stage(path: Path, overrides: Sequence[str] = ()) -> StageConfig:
    """The stage of a file, named after it unless it says otherwise. Raises ConfigError."""
    return read_stage(path, overrides).config


def read_stage(path: Path, overrides: Sequence[str] = ()) -> Reading[StageConfig]:
    """load_stage, and where its values came from."""
    name = stage_of(path)
    if name == "train":
        raise ConfigError([Problem(str(path), 0, "stage", "this is a train.yaml", "nexa run starts it")])

    def prepare(document: Document) -> list[Problem]:
        document.data.setdefault("name", name_of(path.stem))
        return []

    return read_other(path, STAGES[name].model, prepare, overrides)
