"""JSON as its own programs take it (1e-3, tabs), with the line of every key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nexa_dist.config.yaml.file import display_name, read_bytes
from nexa_dist.config.yaml.tree import MAX_DEPTH, Document, PathKey
from nexa_dist.errors import ConfigError, Problem

_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:\n]')


def read_json(path: Path) -> Document:
    """Data and lines of a JSON file whose top level is an object. Raises ConfigError with the line of the fault."""
    file = display_name(path)
    try:
        text = read_bytes(path).decode("utf-8-sig")
        data = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ConfigError([Problem(file, error.lineno, "", f"not JSON: {error.msg}")]) from None
    except RecursionError:
        raise ConfigError([Problem(file, 0, "", f"nested more than {MAX_DEPTH} levels deep")]) from None
    except ValueError as error:  # UnicodeDecodeError too
        raise ConfigError([Problem(file, 0, "", f"not JSON: {error}")]) from None
    if not isinstance(data, dict):
        raise ConfigError([Problem(file, 1, "", "the top level must be an object: {…}")])
    return Document(file, data, _lines(text))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)} is there twice")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _lines(text: str) -> dict[PathKey, int]:
    """Of valid JSON: path to the line of its key. Items of lists stand at the line of their list."""
    lines: dict[PathKey, int] = {(): 1}
    number, path, word = 1, list[str | int](), ""
    open_lists = list[bool]()
    for part in _PART.findall(text):
        if part == "\n":
            number += 1
        elif part in "{[":
            open_lists.append(part == "[")
            path.append(0 if part == "[" else "")
        elif part in "}]":
            open_lists.pop()
            path.pop()
        elif part == "," and open_lists[-1]:
            path[-1] = int(path[-1]) + 1
        elif part == ":":
            path[-1] = json.loads(word)
            lines[tuple(path)] = number
        else:
            word = part
    return lines
