"""`--set a.b=c`: one value of a config from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nexa_dist.config.scalars import shown
from nexa_dist.config.yamlfile import parse_scalar
from nexa_dist.config.yamltree import PathKey
from nexa_dist.errors import ConfigError, Problem
from nexa_dist.secrets import HIDDEN, is_secret_name, redact

MAX_OVERRIDES = 200
MAX_OVERRIDE_CHARS = 4096
_MAX_PARTS = 16
_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}|[0-9]{1,4}")
_INDEX = re.compile(r"\[([0-9]{1,4})\]")


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[PathKey, str], list[Problem]]:
    """Writes the values into `data`. Returns which `--set` gave which path, and what could not be applied."""
    origins: dict[PathKey, str] = {}
    problems: list[Problem] = []
    if len(overrides) > MAX_OVERRIDES:
        return origins, [Problem("--set", 0, "", f"given {len(overrides)} times; at most {MAX_OVERRIDES}")]
    for text in overrides:
        try:
            key, value = _parse(text)
            _store(data, key, value, _label(text), origins)
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


def _parse(text: str) -> tuple[list[str], Any]:
    if len(text) > MAX_OVERRIDE_CHARS:
        raise _fail(
            text,
            f"{len(text)} characters; at most {MAX_OVERRIDE_CHARS}",
            "put it into the file",
        )
    if not text.isprintable():
        raise _fail(
            text,
            "contains a line break, a control character or bytes that are not UTF-8",
        )
    key, equals, value = text.partition("=")
    parts = _INDEX.sub(r".\1", key).split(".")
    if not equals or len(parts) > _MAX_PARTS or not all(_PART.fullmatch(part) for part in parts):
        raise _fail(text, "expected KEY=VALUE, with a KEY like a.b or cluster.0.gpus")
    return parts, parse_scalar(value, _label(text))


def _store(
    data: dict[str, Any],
    parts: list[str],
    value: Any,
    label: str,
    origins: dict[PathKey, str],
) -> None:
    node: Any = data
    path: PathKey = ()
    for last, part in ((index == len(parts) - 1, part) for index, part in enumerate(parts)):
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                message = f"{'.'.join(map(str, path))} is a list of {len(node)}; {part} is none of its items"
                raise ConfigError([Problem(label, 0, "", message, "items are counted from 0")])
            step: str | int = int(part)
        elif isinstance(node, dict):
            step = part
        else:
            message = f"{'.'.join(map(str, path))} is a single value; it has no {part}"
            raise ConfigError([Problem(label, 0, "", message)])
        path = (*path, step)
        if last:
            node[step] = value
            origins[path] = label
        elif isinstance(node, list) or node.get(part) is not None:
            node = node[step]
        else:
            node[step] = {}
            origins[path] = label
            node = node[step]
