"""`--set a.b=c`: one value of a config from the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from nexa_dist.config.yaml.file import parse_list, parse_mapping, parse_scalar
from nexa_dist.config.yaml.scalars import shown
from nexa_dist.config.yaml.tree import PathKey
from nexa_dist.errors import ConfigError, Problem
from nexa_dist.secrets import HIDDEN, is_secret_name, redact

MAX_OVERRIDES = 200
MAX_OVERRIDE_CHARS = 4096
_MAX_PARTS = 16
_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}|[0-9]{1,4}")
_INDEX = re.compile(r"\[([0-9]{1,4})\]")


Kinds = Callable[[PathKey], set[Any]]
"""The plain types that a place takes."""


def apply_overrides(
    data: dict[str, Any], overrides: Sequence[str], kinds: Kinds = lambda _: set()
) -> tuple[dict[PathKey, str], list[Problem]]:
    """Writes the values into `data`: KEY=VALUE, KEY=[VALUE, …] for a whole list, KEY={NAME: VALUE} for a whole mapping,
    KEY+=VALUE for one more item of a list. What stands where `kinds` takes text alone is that text, also when it looks
    like a number. Returns which `--set` gave which path, and what could not be applied."""
    origins: dict[PathKey, str] = {}
    problems: list[Problem] = []
    if len(overrides) > MAX_OVERRIDES:
        return origins, [Problem("--set", 0, "", f"given {len(overrides)} times; at most {MAX_OVERRIDES}")]
    for text in overrides:
        try:
            key, written, more = _parse(text)
            path = _place(data, key, _label(text), more)
            value = _read(written, path, kinds, _label(text))
            _store(data, path, value, _label(text), origins)
        except ConfigError as error:
            problems += error.problems
    return origins, problems


def _label(text: str) -> str:
    """The override as problems show it: one line, and no secret."""
    key, equals, value = text[:200].partition("=")
    value = HIDDEN if is_secret_name(key) else redact(value, key)
    shortened = f"{key}{equals}{value}"
    if len(shortened) > 80 or len(text) > 200:
        shortened = shortened[:79] + "…"
    return f"--set {shortened if shortened.isprintable() else shown(shortened, 80)}"


def _fail(text: str, message: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(_label(text), 0, "", message, hint)])


def _parse(text: str) -> tuple[list[str], str, bool]:
    """(parts of the key, the value as it is written, whether it is one more item)."""
    if len(text) > MAX_OVERRIDE_CHARS:
        raise _fail(text, f"{len(text)} characters; at most {MAX_OVERRIDE_CHARS}", "put it into the file")
    if not text.isprintable():
        raise _fail(text, "contains a line break, a control character or bytes that are not UTF-8")
    key, equals, value = text.partition("=")
    more, key = key.endswith("+"), key.removesuffix("+")
    parts = _INDEX.sub(r".\1", key).split(".")
    if not equals or len(parts) > _MAX_PARTS or not all(_PART.fullmatch(part) for part in parts):
        raise _fail(text, "expected KEY=VALUE, with a KEY like a.b or cluster.0.gpus")
    return parts, value, more


def _read(text: str, path: PathKey, kinds: Kinds, label: str) -> Any:
    """The value as the place where it stands takes it."""
    if text[:1] == "[" and kinds(path) & {list, tuple}:
        return parse_list(text, label, text_only=_text_only(kinds((*path, 0))))
    if text[:1] == "{" and any(kind is dict or hasattr(kind, "model_fields") for kind in kinds(path)):
        return parse_mapping(text, label)
    is_text = _text_only(kinds(path)) and text != ""
    if is_text and len(path) > 1 and text[0] not in "'\"":  # a word for a program, whatever it means in YAML
        return text
    value = parse_scalar(text, label)
    return text if is_text and type(value) in (int, float) else value


def _text_only(kinds: set[Any]) -> bool:
    return str in kinds and not kinds & {int, float, bool, Any}


def _place(data: dict[str, Any], parts: list[str], label: str, more: bool) -> PathKey:
    """Find the place in `data` where the value goes. Raises ConfigError when there is no such place."""
    node: Any = data
    path: PathKey = ()
    for index, part in enumerate(parts):
        if isinstance(node, list):
            most = len(node) + (index == len(parts) - 1)  # one after the last is one more
            if not part.isdecimal() or int(part) >= most:
                message = f"{'.'.join(map(str, path))} is a list of {len(node)}; {part} is none of its items"
                raise ConfigError([Problem(label, 0, "", message, "items are counted from 0")])
            node = node[int(part)] if int(part) < len(node) else None
            path = (*path, int(part))
        elif node is None:  # nothing is there yet: 0 begins a list
            path = (*path, 0 if part == "0" else part)
        elif isinstance(node, dict):
            node, path = node.get(part), (*path, part)
        else:
            message = f"{'.'.join(map(str, path))} is a single value; it has no {part}"
            raise ConfigError([Problem(label, 0, "", message)])
    if not more:
        return path
    if node is not None and not isinstance(node, list):
        raise ConfigError([Problem(label, 0, "", f"{'.'.join(parts)} is no list, to which something can be added")])
    return (*path, len(node or ()))


def _store(data: dict[str, Any], path: PathKey, value: Any, label: str, origins: dict[PathKey, str]) -> None:
    node: Any = data
    for depth, step in enumerate(path[:-1], 1):
        if (node.get(step) if isinstance(node, dict) else next(iter(node[step:]), None)) is None:
            _put(node, step, [] if isinstance(path[depth], int) else {})
            origins[path[:depth]] = label
        node = node[step]
    _put(node, path[-1], value)
    origins[path] = label


def _put(node: Any, step: str | int, value: Any) -> None:
    if isinstance(node, list) and step == len(node):
        node.append(value)
    else:
        node[step] = value
