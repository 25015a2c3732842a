"""Problems of a config, in words: pydantic's errors as problems with a line, a path and a hint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nexa_dist.config.fields import Misplaced, check_host
from nexa_dist.config.yaml.scalars import AmbiguousError, plain_value, shown
from nexa_dist.config.yaml.tree import Document, PathKey, dotted
from nexa_dist.errors import Problem
from nexa_dist.secrets import HIDDEN, is_secret_name, redact

MAX_WORDS = 40
_ONE_OF = "one of: "
MAX_PROBLEMS = 50
"""More are counted only: to look for the nearest key of thousands of wrong ones takes too long."""

_EXPECTED: Mapping[str, str] = {
    "string_type": "text",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
}


def kinds_at(model: type[BaseModel], path: PathKey) -> set[Any]:
    """The plain types (str, int, list, …) that the schema takes at `path`; none where it knows no such place."""
    return {get_origin(one) or one for one in _types_at(model, path)}


def models_at(model: type[BaseModel], path: PathKey) -> list[type[BaseModel]]:
    """The models that describe the mapping at `path`; none where any key is allowed."""
    return [one for one in _types_at(model, path) if isinstance(one, type) and issubclass(one, BaseModel)]


def choices_at(model: type[BaseModel], path: PathKey) -> list[str]:
    """The words that the schema lists for the value at `path`."""
    words = [word for one in _types_at(model, path) if get_origin(one) is Literal for word in get_args(one)]
    return [word for word in words if isinstance(word, str)]


def _types_at(model: type[BaseModel], path: PathKey) -> list[Any]:
    found: list[Any] = [model]
    for part in path:
        found = [inner for one in found for inner in _inside(one, part)]
    return found


def _inside(annotation: Any, part: str | int) -> Iterator[Any]:
    """Types under a key or index of this type, without Annotated and unions around it."""
    origin, words = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        yield from _plain_types(field.annotation) if field else ()
    elif origin in (list, tuple) and isinstance(part, int):
        yield from _plain_types(words[0])
    elif origin is dict:
        yield from _plain_types(words[1])


def _plain_types(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _plain_types(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _plain_types(inner)
    else:
        yield annotation


def value_at(data: Any, path: PathKey, default: Any = None) -> Any:
    """The value at `path`, `default` when `--set` replaced what it was in."""
    for part in path:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if not inside:
            return default
        data = data[part]
    return data


def meant(word: str, words: Sequence[str]) -> str:
    """The one of `words` that `word` is a slip of: a letter in four is wrong, lacks, is too much or stands beside its
    place; or it is the beginning of one only. Empty when it is none: a word near in letters may be far in meaning
    (zones, owner)."""
    plain = {re.sub(r"[\W_]", "", each).lower(): each for each in words}
    typed = re.sub(r"[\W_]", "", word[:64]).lower()
    begun = [each for each in plain if len(typed) > 2 and each.startswith(typed)]
    if typed in plain or len(begun) == 1:
        return plain[typed if typed in plain else begun[0]]
    most = min(max(1, len(typed) // 4), len(typed) - 1)
    slips = {each: _slips(typed, each) for each in plain if abs(len(each) - len(typed)) <= most}
    best = min(slips, key=slips.__getitem__, default="")
    return plain[best] if best and slips[best] <= most else ""


def _slips(one: str, other: str) -> int:
    """Count the slips that make `other` of `one`: letters changed, left out, put in, or swapped with the next."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and b == one[i - 2]:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def nearest(word: str, words: Sequence[str]) -> str:
    """`did you mean …`, or all the words when none is near."""
    if near := meant(word, words):
        return f"did you mean {near}?"
    shown = sorted(words)[:MAX_WORDS]
    return f"{_ONE_OF}{', '.join(shown)}{' …' if len(words) > MAX_WORDS else ''}" if words else ""


def problems_of(
    error: ValidationError, model: type[BaseModel], document: Document, origins: Mapping[PathKey, str]
) -> list[Problem]:
    """The first MAX_PROBLEMS errors as problems. `origins` maps the paths that `--set` gave to its text."""
    out = []
    listed: set[str] = set()
    for details in error.errors(include_url=False)[:MAX_PROBLEMS]:
        path = _data_path(details, document.data)
        if path in document.suspect or _only_bad_items(details, value_at(document.data, path)):
            continue
        message, hint = _explain(details, model, path)
        out.append(problem_at(path, message, "" if hint in listed else hint, document, origins))
        listed |= {hint} if hint.startswith(_ONE_OF) else set()  # the same keys are listed once
    return out


def _only_bad_items(details: ErrorDetails, value: Any) -> bool:
    """pydantic counts the items without faults: a list of wrong items is also "too short" to it."""
    least = details.get("ctx", {}).get("min_length", 0)
    return details["type"] == "too_short" and isinstance(value, list) and len(value) >= least


def problem_at(
    path: PathKey, message: str, hint: str, document: Document, origins: Mapping[PathKey, str] = {}
) -> Problem:
    """A problem at the `--set` or at the line that gave `path`, or else its nearest parent."""
    for end in range(len(path), -1, -1):
        if path[:end] in origins:
            return Problem(origins[path[:end]], 0, dotted(path), message, hint)
        if path[:end] in document.lines:
            return Problem(document.file, document.lines[path[:end]], dotted(path), message, hint)
    return Problem(document.file, 0, dotted(path), message, hint)


def _data_path(details: ErrorDetails, data: Any) -> PathKey:
    """The error's place in the data: without the names of union members that pydantic puts in between."""
    path: list[str | int] = []
    for part in details["loc"]:
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            data = data[part]
        if inside or (details["type"] == "missing" and part == details["loc"][-1]):
            path.append(part)
    return tuple(path)


def _explain(details: ErrorDetails, model: type[BaseModel], path: PathKey) -> tuple[str, str]:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "missing":
        return _missing(model, path)
    if kind == "extra_forbidden":
        keys = [key for m in models_at(model, path[:-1]) for key in m.model_fields]
        return "unknown key", nearest(str(path[-1]) if path else "", keys)
    if kind == "nexa":
        message, hint = str(context["message"]), str(context["hint"])
    elif kind in _EXPECTED:
        message, hint = (f"expected {_EXPECTED[kind].format(**context)}", _hint(details, model, path))
    else:
        message, hint = str(context.get("error") or details["msg"]), ""
    if message.startswith("expected ") and ", found " not in message:
        message += f", found {_found(value, path)}"
    return message, hint


def _missing(model: type[BaseModel], path: PathKey) -> tuple[str, str]:
    for parent in models_at(model, path[:-1]):
        field = parent.model_fields.get(str(path[-1])) if path else None
        if field and field.description:
            return "this key is missing", field.description
    return "this key is missing", ""


def _hint(details: ErrorDetails, model: type[BaseModel], path: PathKey) -> str:
    value, kind = details["input"], details["type"]
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'quote it: "{_found(value, path)}"'
    if kind == "literal_error" and isinstance(value, str):
        words = choices_at(model, path)
        return nearest(value, words) if meant(value, words) else ""
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str) and value.strip():
        return "write it without quotes" if isinstance(_plain(value), int | float) else ""
    if kind == "model_type" and isinstance(value, str):
        return _as_mapping(value, models_at(model, path))
    return ""


def _as_mapping(text: str, models: Sequence[type[BaseModel]]) -> str:
    """How a section is written of which only the first word stands there: hosts, offers."""
    required = [key for each in models for key, field in each.model_fields.items() if field.is_required()]
    if not required or not re.fullmatch(r"[\w@.:/\[\]-]{1,64}", text):
        return ""
    first = f"{required[0]}: {redact(text)}"
    try:
        if required[0] == "host":
            check_host(text)
    except Misplaced as told:
        first = told.hint.removeprefix("write ")
    except ValueError:
        return ""
    return "write {" + ", ".join([first, *(f"{key}: …" for key in required[1:])]) + "}"


def _plain(text: str) -> object:
    try:
        return plain_value(text)
    except AmbiguousError:
        return None


def _found(value: object, path: PathKey) -> str:
    if any(isinstance(part, str) and is_secret_name(part) for part in path):
        return HIDDEN
    return shown(redact(value))
