"""Reads cluster.yaml and train.yaml. Every fault of a file comes at once, as one ConfigError."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.fields import check_name
from nexa_dist.config.overrides import apply_overrides
from nexa_dist.config.problems import MAX_PROBLEMS, choices_at, kinds_at, models_at, problem_at, problems_of, value_at
from nexa_dist.config.rules import KEYS
from nexa_dist.config.train import TrainConfig, name_of
from nexa_dist.config.yaml.file import display_name, parse_yaml, read_bytes
from nexa_dist.config.yaml.scalars import shown
from nexa_dist.config.yaml.tree import Document, PathKey
from nexa_dist.errors import ConfigError, Problem
from nexa_dist.secrets import redact

Kind = Literal["cluster", "train"]
_MODELS: Mapping[Kind, type[BaseModel]] = {"cluster": ClusterConfig, "train": TrainConfig}
_KIND_OF: Mapping[type[BaseModel], Kind] = {model: kind for kind, model in _MODELS.items()}
_MARKS: Mapping[Kind, tuple[str, ...]] = {
    "cluster": ("cluster", "provider", "nodes"),
    "train": ("script", "module", "program", "trainer", "model", "dataset"),
}

_FILL_IN = "give a value, or remove the key"

M = TypeVar("M", bound=BaseModel)


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The cluster of `path`. Own hosts without a name take the file's; ssh_config and stack become absolute."""
    config = _load(path, overrides, ClusterConfig, lambda document: _name_from_file(document, path))
    named = {key: value for key in ("ssh_config", "stack") if (value := getattr(config, key)) is not None}
    whole = {key: str((path.parent / os.path.expanduser(value)).absolute()) for key, value in named.items()}
    return config.model_copy(update=whole) if whole else config


def load_train(path: Path, overrides: Sequence[str] = (), more: Sequence[str] = ()) -> TrainConfig:
    """The training of `path`, named after it unless it says otherwise. `more` are arguments after those of the file."""

    def prepare(document: Document) -> list[Problem]:
        document.data.setdefault("name", name_of(path.stem))
        return _append(document.data, more)

    return _load(path, overrides, TrainConfig, prepare)


def changed_train(data: Any, run_id: str, overrides: Sequence[str], more: Sequence[str] = ()) -> TrainConfig:
    """The training as run.json keeps it, with the values of `--set` and more arguments."""
    recorded_train(data, run_id)
    document = replace(parse_yaml(json.dumps(data).encode(), f"{run_id}/run.json"), lines={})
    return _validated(document, overrides, TrainConfig, lambda document: _append(document.data, more))


def _append(data: dict[str, Any], more: Sequence[str]) -> list[Problem]:
    if more and isinstance(have := data.setdefault("args", []), list):
        have += more
    return []


def recorded_train(data: Any, run_id: str) -> TrainConfig:
    """The training as run.json keeps it. Raises ConfigError when it is torn, or of another version of nexa."""
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        faults = [Problem(f"{run_id}/run.json", 0, ".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
        raise ConfigError(faults[:MAX_PROBLEMS]) from None


def resolved(config: BaseModel) -> dict[str, Any]:
    """The config with its defaults as plain data to print: only keys that mean something, secrets hidden."""
    data = config.model_dump(mode="json", exclude_none=True)
    if isinstance(config, ClusterConfig):
        data = {key: value for key, value in data.items() if key in KEYS[config.provider]}
    return {key: redact(value, "" if key == "secrets" else key) for key, value in data.items()}  # which are names


def kind_of(path: Path) -> Kind:
    """Kind of a file (cluster or train), by its keys. Raises ConfigError when it cannot be read."""
    keys = set(parse_yaml(read_bytes(path), display_name(path)).data)
    return max(_MARKS, key=lambda kind: (len(keys & set(_MODELS[kind].model_fields)), len(keys & set(_MARKS[kind]))))


def _load(
    path: Path,
    overrides: Sequence[str],
    model: type[M],
    prepare: Callable[[Document], list[Problem]] | None = None,
) -> M:
    document = parse_yaml(read_bytes(path), display_name(path))
    _refuse_other_kind(document, model)
    return _validated(document, overrides, model, prepare)


def _validated(
    document: Document,
    overrides: Sequence[str],
    model: type[M],
    prepare: Callable[[Document], list[Problem]] | None,
) -> M:
    origins, problems = apply_overrides(document.data, overrides, lambda path: kinds_at(model, path))
    doubtful = {
        at: problem
        for at, problem in document.yes_no.items()
        if at not in origins and value_at(document.data, at) not in choices_at(model, at)
    }
    problems += [
        *document.problems,
        *doubtful.values(),
        *(prepare(document) if prepare else []),
    ]
    empty = _empty_values(document, model, origins)
    problems += [problem_at(at, "the value is empty", _FILL_IN, document, origins) for at in empty]
    document = replace(document, suspect=document.suspect | {*doubtful, *empty})
    try:
        # From JSON, since strict mode would not take a Python list for a tuple. None leaves it to the model.
        strict = None if model.model_config.get("strict") else True
        config = model.model_validate_json(json.dumps(document.data), strict=strict)
    except ValidationError as error:
        problems += problems_of(error, model, document, origins)
        more = error.error_count() - MAX_PROBLEMS
        raise ConfigError(_in_order(problems, document.file, max(more, 0))) from None
    if problems:
        raise ConfigError(_in_order(problems, document.file))
    return config


def _empty_values(document: Document, model: type[BaseModel], given: Iterable[PathKey]) -> list[PathKey]:
    """Keys of the schema without a value: `max_hours:` must not silently mean no limit.

    In JSON, which programs write, null is a key left out.
    """
    return [
        at
        for at in (given if document.file.endswith(".json") else (*document.lines, *given))
        if at and value_at(document.data, at, "") is None
        if any(at[-1] in parent.model_fields for parent in models_at(model, at[:-1]))
    ]


def _refuse_other_kind(document: Document, model: type[BaseModel]) -> None:
    """A cluster file given as a training, or the reverse: one sentence instead of a page of unknown keys."""
    for kind, marks in _MARKS.items():
        found = [key for key in marks if key in document.data and key not in model.model_fields]
        if found and not any(key in document.data for key in _MARKS[_KIND_OF[model]]):
            message = f"this is a {kind}.yaml (`{found[0]}`), and a {_KIND_OF[model]}.yaml is needed here"
            raise ConfigError([Problem(document.file, document.lines[(found[0],)][0], "", message)])


def _name_from_file(document: Document, path: Path) -> list[Problem]:
    if "cluster" not in document.data or "name" in document.data:
        return []
    try:
        document.data["name"] = check_name(path.stem)
    except ValueError as error:
        document.data["name"] = "unnamed"  # the fault is told here, and not once more as a missing key
        message = f"this key is missing, and the file name {shown(path.stem)} cannot stand for it: {error}"
        return [problem_at(("name",), message, "give the cluster a name", document, {})]
    return []


def _in_order(problems: Sequence[Problem], file: str, more: int = 0) -> list[Problem]:
    """Sorts problems by line, those of `--set` last, each once, and not without end."""
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.file != file, p.line))
    rest = len(ordered) - MAX_PROBLEMS + more
    return (
        ordered
        if rest <= 0
        else [
            *ordered[:MAX_PROBLEMS],
            Problem(file, 0, "", f"and {rest} more problems"),
        ]
    )
