"""Shapes of data that a stranger made: a check takes a value and answers it clean, or raises Strange.

By hand and not by pydantic: building its validators for these few messages would take a launch longer than all of them
together, and the node's words are wanted as plain values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Check = Callable[[Any], Any]
MOST = 1 << 53
"""Whole numbers beyond it are no counts of anything."""


BEYOND = 1 << 64
"""The largest that any program writes: nanoseconds since 1970, inodes."""


class Strange(ValueError):
    """What does not fit, and where."""


class NotJson(Strange):
    """Nothing that JSON has a word for."""


def parsed(data: bytes, check: Check, most_bytes: int) -> Any:
    """The JSON in `data`, checked. Raises Strange."""
    if len(data) > most_bytes:
        raise Strange(f"{len(data)} bytes, where {most_bytes} are the most")
    try:
        found = json.loads(data)
    except RecursionError:
        raise Strange("nested too deeply") from None
    except ValueError as error:
        raise NotJson(f"no JSON: {str(error)[:100]}") from None
    return check(found)


def shown(value: object) -> str:
    """A short text for an error message, whatever it is."""
    if isinstance(value, int) and abs(value) > MOST:
        return "a number beyond all bounds"
    plain = isinstance(value, (str, int, float, type(None)))
    return repr(value[:60] if isinstance(value, str) else value) if plain else f"a {type(value).__name__}"


def whole(low: int = 0, high: int = MOST) -> Check:
    def check(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise Strange(f"{shown(value)} is no whole number from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number."""

    def check(value: Any) -> float:
        if type(value) in (int, float) and abs(value) <= 1e300 and low <= value <= high:
            return float(value)
        raise Strange(f"{shown(value)} is no number from {low:g} to {high:g}")

    return check


def text(most: int = 4096, pattern: str = "") -> Check:
    """A string that can be printed and encoded; one that is too long is cut where no pattern is asked for."""

    def check(value: Any) -> str:  # compiled when it is first used, and kept by `re`
        if not isinstance(value, str) or (pattern and (len(value) > most or not re.fullmatch(pattern, value))):
            raise Strange(f"{shown(value)} is not {f'of the form {pattern}' if pattern else 'a text'}")
        return value[:most].encode(errors="replace").decode()

    return check


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise Strange(f"{shown(value)} is neither true nor false")


def one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise Strange(f"{shown(value)} is none of {', '.join(words)}")

    return check


def maybe(check: Check) -> Check:
    """Null, or what fits."""
    return lambda value: None if value is None else check(value)


def lenient(check: Check) -> Check:
    """What fits, else null: for figures that a user's own script tells."""

    def passing(value: Any) -> Any:
        try:
            return check(value)
        except Strange:
            return None

    return passing


def rows(check: Check, most: int, least: int = 0) -> Check:
    def checked(value: Any) -> list[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Strange(f"{shown(value)} is no list of at most {most}")
        return [_at(place, check, inner) for place, inner in enumerate(value)]

    return checked


def table(key: Check, check: Check, most: int) -> Check:
    def checked(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise Strange(f"{shown(value)} is no table of at most {most}")
        return {_at("name", key, name): _at(name[:60], check, inner) for name, inner in value.items()}

    return checked


def record(needed: dict[str, Check], may: dict[str, Check] | None = None, *, only: bool = False) -> Check:
    """An object with these fields; what else it has is left out, or refused with `only`."""
    known = {**needed, **(may or {})}

    def checked(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Strange(f"{shown(value)} is no object")
        if missing := [name for name in needed if name not in value]:
            raise Strange(f"{missing[0]} is missing")
        if more := [name for name in value if only and name not in known]:
            raise Strange(f"{shown(more[0])} is no field of it")
        return {name: _at(name, check, value[name]) for name, check in known.items() if name in value}

    return checked


def of_type(kind: Any) -> Check:
    """Values of an annotated type; a dataclass is made of an object with its fields, as JSON has it. What else the
    object has is left out. For files that we wrote: texts and numbers of any size."""
    head, inner, make = get_origin(kind), get_args(kind), kind
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        checks = {field.name: of_type(hints[field.name]) for field in fields(kind)}
        needed = [field.name for field in fields(kind) if field.default is MISSING is field.default_factory]
        check = record({name: checks.pop(name) for name in needed}, checks)
        return lambda value: make(**check(value))
    if head is Literal:
        return one_of(*inner)
    if head is UnionType:
        return maybe(of_type(next(each for each in inner if each is not NoneType)))
    if head is tuple:
        items = rows(of_type(inner[0]), LARGE)
        return lambda value: tuple(items(value))
    if head is dict:
        return table(of_type(inner[0]), of_type(inner[1]), LARGE)
    return PLAIN[kind]


LARGE = 1 << 26
PLAIN: dict[Any, Check] = {
    str: text(LARGE), int: whole(-MOST), float: number(), bool: flag, Any: lambda value: value,
}  # fmt: skip


def anything(depth: int, most: int, most_text: int = 4096) -> Check:
    """Any JSON of at most so many levels, of at most `most` values a level."""

    def checked(value: Any) -> Any:
        if isinstance(value, str):
            return text(most_text)(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return whole(-BEYOND, BEYOND)(value)
        if not isinstance(value, (dict, list)):
            return value
        if depth == 0 or len(value) > most:
            raise Strange(f"more than {most} values, or too many levels")
        inner = anything(depth - 1, most, most_text)
        if isinstance(value, list):
            return [inner(each) for each in value]
        return {text(200)(name): inner(each) for name, each in value.items()}

    return checked


def _at(place: object, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except Strange as error:
        raise Strange(f"{place}: {error}") from None
