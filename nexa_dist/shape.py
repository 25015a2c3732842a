"""Shapes of data that a stranger made: a check takes a value and answers it clean, or raises Strange.

By hand and not by pydantic: building its validators for these few messages would take a launch longer than all of them
together, and the node's words are wanted as plain values.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Check = Callable[[Any], Any]
MOST = 1 << 53
"""Whole numbers beyond it are no counts of anything."""


BEYOND = 1 << 64
"""The largest that any program writes: nanoseconds since 1970, inodes."""


class Strange(ValueError):
    """Strange value: what does not fit, and where."""


class NotJson(Strange):
    """Value that JSON has no word for."""


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
    """Check that lets through what fits, else null: for figures that a user's own script tells."""

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


def record(needed: dict[str, Check], may: dict[str, Check] | None = None) -> Check:
    """An object with these fields; what else it has is left out."""
    known = {**needed, **(may or {})}

    def checked(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Strange(f"{shown(value)} is no object")
        if missing := [name for name in needed if name not in value]:
            raise Strange(f"{missing[0]} is missing")
        return {name: _at(name, check, value[name]) for name, check in known.items() if name in value}

    return checked


@functools.cache
def of(hint: Any) -> Check:
    """The check of a type: a dataclass is made of an object with its fields, what is Annotated is checked by that."""
    kind, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _fields(hint)
    if kind is Annotated:
        return args[1]  # type: ignore[no-any-return]
    if kind in (Union, UnionType):
        return maybe(of(args[0]))
    if kind is Literal:
        return one_of(*args)
    if kind is dict:
        return table(of(args[0]), of(args[1]), MOST)
    if kind is list:
        return rows(of(args[0]), MOST)
    if kind is tuple:
        many = args[-1] is ...
        each = rows(of(args[0]), MOST if many else len(args), 0 if many else len(args))
        return lambda value: tuple(each(list(value) if isinstance(value, tuple) else value))
    plain = {int: whole(-MOST), float: number(), str: text(MOST), bool: flag, Any: lambda value: value}
    return plain[hint]


def _fields(kind: Any) -> Check:
    """Check of an object's fields; what it has beyond them goes to the field `more`, and is refused where there is
    none."""
    hints, known = get_type_hints(kind, include_extras=True), [f for f in dataclasses.fields(kind) if f.init]
    checks = {field.name: of(hints[field.name]) for field in known if field.name != "more"}
    unset = dataclasses.MISSING
    needed = [field.name for field in known if field.default is unset and field.default_factory is unset]

    def checked(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Strange(f"{shown(value)} is no object")
        if missing := [name for name in needed if name not in value]:
            raise Strange(f"{missing[0]} is missing")
        more = {name: item for name, item in value.items() if name not in checks}
        if more and len(checks) == len(known):
            raise Strange(f"{shown(next(iter(more)))} is not known here")
        found = {name: _at(name, check, value[name]) for name, check in checks.items() if name in value}
        return kind(**found, **({"more": more} if more else {}))

    return checked


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
