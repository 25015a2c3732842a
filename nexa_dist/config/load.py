"""Reads cluster.yaml and train.yaml. Every fault of a file comes at once, as one ConfigError."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from nexa_dist.config.backends import BACKENDS, SECTIONS, resolve
from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.fields import check_name
from nexa_dist.config.overrides import apply_overrides
from nexa_dist.config.problems import (
    MAX_PROBLEMS,
    choices_at,
    kinds_at,
    models_at,
    nearest,
    problem_at,
    problems_of,
    value_at,
)
from nexa_dist.config.rules import KEYS
from nexa_dist.config.train import TrainConfig, name_of
from nexa_dist.config.yaml.file import display_name, parse_yaml, read_bytes
from nexa_dist.config.yaml.json_text import read_json
from nexa_dist.config.yaml.overlay import overlay, places
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
Prepare = Callable[[Document], list[Problem]]
"""Changes a document before it is validated, and says what is wrong with it."""


@dataclass(frozen=True)
class Reading(Generic[M]):
    """A config, and where its values came from: a file and line, or `--set`, by path; a path that is absent has its
    default. `left_out`: keys of the plan that belong to a section which the training does not have."""

    config: M
    places: Mapping[PathKey, str]
    left_out: tuple[str, ...] = ()


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The cluster of `path`. Own hosts without a name take the file's; ssh_config and stack become absolute."""
    return read_cluster(path, overrides).config


def read_cluster(path: Path, overrides: Sequence[str] = ()) -> Reading[ClusterConfig]:
    """load_cluster, and where its values came from."""
    found = _load(path, overrides, ClusterConfig, lambda document: _name_from_file(document, path))
    config = found.config
    named = {key: value for key in ("ssh_config", "stack") if (value := getattr(config, key)) is not None}
    whole = {key: str((path.parent / os.path.expanduser(value)).absolute()) for key, value in named.items()}
    return replace(found, config=config.model_copy(update=whole)) if whole else found


def load_train(
    path: Path, overrides: Sequence[str] = (), more: Sequence[str] = (), plan: Path | None = None
) -> TrainConfig:
    """The training of `path`, named after it unless it says otherwise. `more` are arguments after those of the file;
    `plan` is a file whose keys go over those of `path`, and under `overrides`."""
    return read_train(path, overrides, more, plan).config


def read_train(
    path: Path, overrides: Sequence[str] = (), more: Sequence[str] = (), plan: Path | None = None
) -> Reading[TrainConfig]:
    """load_train, and where its values came from."""

    def prepare(document: Document) -> list[Problem]:
        document.data.setdefault("name", name_of(path.stem))
        if plan and isinstance(tags := document.data.setdefault("tags", []), list):
            tags.append(f"plan:{name_of(plan.stem)}")  # so the manifest names it
        return _append(document.data, more)

    found = _load(path, overrides, TrainConfig, prepare, plan)
    if found.config.backend and (reader := BACKENDS[found.config.backend].reads):
        resolve(reader)(found.config)
    named: dict[PathKey, str] = {("tags", len(found.config.tags) - 1): f"plan {plan.stem}"} if plan else {}
    return replace(found, places={**found.places, **named})


def of_project(name: str) -> Path:
    """The path of a file that train.yaml names: from the folder of the project, which is this one or one above."""
    return next((folder / name for folder in (Path(), *Path.cwd().parents) if (folder / name).exists()), Path(name))


def load_other(path: Path, model: type[M], prepare: Prepare | None = None) -> M:
    """A config file of another kind."""
    return read_other(path, model, prepare).config


def read_other(path: Path, model: type[M], prepare: Prepare | None = None, overrides: Sequence[str] = ()) -> Reading[M]:
    """load_other, and where its values came from."""
    document = read_json(path) if path.suffix == ".json" else parse_yaml(read_bytes(path), display_name(path))
    return _validated(document, overrides, model, prepare)


def changed_train(data: Any, run_id: str, overrides: Sequence[str], more: Sequence[str] = ()) -> TrainConfig:
    """The training as run.json keeps it, with the values of `--set` and more arguments."""
    recorded_train(data, run_id)
    document = replace(parse_yaml(json.dumps(data).encode(), f"{run_id}/run.json"), lines={})
    return _validated(document, overrides, TrainConfig, lambda document: _append(document.data, more)).config


def _append(data: dict[str, Any], more: Sequence[str]) -> list[Problem]:
    if more and isinstance(have := data.setdefault("args", []), list):
        have += more
    return []


def recorded_train(data: Any, run_id: str) -> TrainConfig:
    """The training as run.json keeps it. Raises ConfigError when it is torn, or of another version of nexa."""
    hint = "another version of nexa wrote it, which can go on with it; or begin anew: nexa run TRAIN.yaml"
    return valid_train(data, f"{run_id}/run.json", hint)


def valid_train(data: Any, file: str, hint: str = "") -> TrainConfig:
    """The training of plain data that no line of a file has. Raises ConfigError; `file` is where they came from, `hint`
    what to do when they are no training."""
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        faults = [Problem(file, 0, ".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
        fault = ConfigError(faults[:MAX_PROBLEMS])
        fault.hint = hint
        raise fault from None


def resolved(config: BaseModel) -> dict[str, Any]:
    """The config with its defaults as plain data to print: only keys that mean something, secrets hidden."""
    data = config.model_dump(mode="json", exclude_none=True)
    if isinstance(config, ClusterConfig):
        data = {key: value for key, value in data.items() if key in KEYS[config.provider]}
    return without_secrets(data)


def without_secrets(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a config as it may be shown. `secrets`, of train.yaml and of a stage's `launch`, are names."""
    return {
        key: without_secrets(value) if key == "launch" and isinstance(value, dict)
        else redact(value, "" if key == "secrets" else key)
        for key, value in data.items()
    }  # fmt: skip


def kind_of(path: Path) -> Kind:
    """Kind of a file (cluster or train), by its keys. Raises ConfigError when it cannot be read."""
    keys = set(parse_yaml(read_bytes(path), display_name(path)).data)
    return max(_MARKS, key=lambda kind: (len(keys & set(_MODELS[kind].model_fields)), len(keys & set(_MARKS[kind]))))


def _load(
    path: Path, overrides: Sequence[str], model: type[M], prepare: Prepare, plan: Path | None = None
) -> Reading[M]:
    document = parse_yaml(read_bytes(path), display_name(path))
    _refuse_other_kind(document, model)
    above = parse_yaml(read_bytes(plan), display_name(plan)) if plan else None
    return _validated(document, overrides, model, prepare, above)


def _validated(
    document: Document, overrides: Sequence[str], model: type[M], prepare: Prepare | None, plan: Document | None = None
) -> Reading[M]:
    left_out = [key for key in SECTIONS if plan and key in plan.data and key not in document.data]
    planned = overlay(document, plan, left_out) if plan else {}
    set_, problems = apply_overrides(document.data, overrides, lambda path: kinds_at(model, path))
    origins = planned | set_
    doubtful = {
        at: problem
        for file, over in ((document, origins), (plan, set_))
        if file
        for at, problem in file.yes_no.items()
        if at not in over and value_at(document.data, at) not in choices_at(model, at)
    }
    problems += [
        *(_unknown(plan, model, left_out) if plan else ()),
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
    return Reading(config, places(document, planned, set_), tuple(left_out))


def _unknown(plan: Document, model: type[BaseModel], sections: Sequence[str]) -> list[Problem]:
    """Faults of the plan itself, and unknown keys in its sections that are left out: nothing else looks at these."""
    problems = list(plan.problems)
    for path in plan.lines:
        keys = [key for m in models_at(model, path[:-1]) for key in m.model_fields] if path[:1] else []
        if path and path[0] in sections and keys and path[-1] not in keys:
            problems.append(problem_at(path, "unknown key", nearest(str(path[-1]), keys), plan))
    return problems


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
            raise ConfigError([Problem(document.file, document.lines[(found[0],)], "", message)])


def _name_from_file(document: Document, path: Path) -> list[Problem]:
    if "cluster" not in document.data or "name" in document.data:
        return []
    try:
        document.data["name"] = check_name(path.stem)
    except ValueError as error:
        document.data["name"] = "unnamed"  # the fault is told here, and not once more as a missing key
        message = f"this key is missing, and the file name {shown(path.stem)} cannot stand for it: {error}"
        return [problem_at(("name",), message, "give the cluster a name", document)]
    return []


def _in_order(problems: Sequence[Problem], file: str, more: int = 0) -> list[Problem]:
    """Sorts problems by line, those of `--set` last, each once, and not without end."""
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.file != file, p.line))
    rest = len(ordered) - MAX_PROBLEMS + more
    if rest <= 0:
        return ordered
    return [*ordered[:MAX_PROBLEMS], Problem(file, 0, "", f"and {rest} more problems")]
