"""Plain data, and the line of every key, from YAML events: bounded in depth and size before it grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from nexa_dist.config.yaml.scalars import AmbiguousError, Scalar, is_yes_no, plain_value, shown
from nexa_dist.errors import ConfigError, Problem

MAX_DEPTH = 50
MAX_EVENTS = 10_000
MAX_CHARS = 512 * 1024
"""Characters of all scalars together after aliases are written out."""

PathKey = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """Plain data of one file, and where it was written."""

    file: str
    data: dict[str, Any]
    lines: dict[PathKey, int]
    """Path to the line of its key, or of the item of a list, 1-based. The root is the empty path."""
    problems: tuple[Problem, ...] = ()
    """Faults that did not stop the reading (duplicate keys, tags …). Whoever uses `data` must report them."""
    suspect: frozenset[PathKey] = frozenset()
    """Paths whose value is already reported in `problems`."""
    yes_no: Mapping[PathKey, Problem] = field(default_factory=dict)
    """Unquoted yes, no, on, off: a fault wherever the word is not one that the schema lists."""


def dotted(path: PathKey) -> str:
    """`("cluster", 1, "host")` as `cluster[1].host`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else ("." if text else "") + _key_text(part)
    return text


def line_of(mark: Any) -> int:
    """1-based line of a parser's mark."""
    return mark.line + 1 if mark else 1


def _key_text(key: str) -> str:
    return key if key.isprintable() and len(key) <= 60 else shown(key, 40)


class Expander:
    """Collects events, writes aliases out, and stops as soon as the document is too deep or too big."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.out: list[Any] = []
        self._chars = 0
        self._anchors: dict[str, tuple[int, int, int]] = {}
        """Anchor to (first event, end, characters) of its node."""
        self._open: list[tuple[str | None, int, int]] = []
        """Anchor, first event and characters before, of every collection that is still open."""

    def add(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._add_alias(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.out.append(event)
            self._remember(*self._open.pop())
        else:
            opened = (event.anchor, len(self.out), self._chars)
            self.out.append(event)
            if isinstance(event, yaml.CollectionStartEvent):
                self._open.append(opened)
            else:
                self._chars += len(event.value)
                self._remember(*opened)
        if len(self._open) > MAX_DEPTH:
            raise self.fault(event, f"nested more than {MAX_DEPTH} levels deep")
        self._check_size(event, len(self.out), self._chars)

    def fault(self, event: Any, message: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(self.file, line_of(event.start_mark), "", message, hint)])

    def _remember(self, anchor: str | None, first: int, chars_before: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (first, len(self.out), self._chars - chars_before)

    def _add_alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise self.fault(
                event, f"alias {shown('*' + event.anchor)} stands for nothing before it", "quote it if it is text"
            )
        first, end, chars = self._anchors[event.anchor]
        # Before growing: nine lines of aliases can stand for a billion values.
        self._check_size(event, len(self.out) + end - first, self._chars + chars)
        self.out.extend(self.out[first:end])
        self._chars += chars

    def _check_size(self, event: Any, events: int, chars: int) -> None:
        if events > MAX_EVENTS or chars > MAX_CHARS:
            raise self.fault(event, f"more than {MAX_EVENTS} values or {MAX_CHARS} characters (aliases written out)")


class Builder:
    """Plain data from events; it calls itself for what is inside, at most MAX_DEPTH deep."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[PathKey, int] = {}
        self.problems: list[Problem] = []
        self.suspect: set[PathKey] = set()
        self.yes_no: dict[PathKey, Problem] = {}

    def build(self, events: list[Any]) -> Document:
        left = iter(events)
        root = next(left)
        data = self._value(root, left, (), line_of(root.start_mark))
        return Document(self.file, data, self.lines, tuple(self.problems), frozenset(self.suspect), self.yes_no)

    def _report(self, event: Any, path: PathKey, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, line_of(event.start_mark), dotted(path), message, hint))

    def _check_tag(self, event: Any, path: PathKey) -> None:
        if event.tag is not None:
            self._report(
                event, path, f"tag {shown(event.tag)} is not allowed", "remove it; quote the value if it is text"
            )

    def _value(self, event: Any, left: Iterator[Any], path: PathKey, line: int, keep: bool = True) -> Any:
        """The value that begins with `event`, and takes all events inside from `left`. `line` is that of its key."""
        if keep:
            self.lines[path] = line
        self._check_tag(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if len(path) >= MAX_DEPTH:
            self._report(event, path, f"nested more than {MAX_DEPTH} levels deep")
            raise ConfigError(self.problems)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(left, path)
        items: list[Any] = []
        while not isinstance(item := next(left), yaml.CollectionEndEvent):
            items.append(self._value(item, left, (*path, len(items)), line_of(item.start_mark)))
        return items

    def _mapping(self, left: Iterator[Any], path: PathKey) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(left), yaml.CollectionEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._report(event, path, "a key must be a word, not a list or a mapping")
                raise ConfigError(self.problems)
            keep = self._is_key(event, path, found)
            value = self._value(next(left), left, (*path, event.value), line_of(event.start_mark), keep)
            if keep:
                found[event.value] = value
        return found

    def _is_key(self, event: Any, above: PathKey, found: Mapping[str, Any]) -> bool:
        """Tell whether this is a key of its own; what is wrong with it is reported."""
        key, path = event.value, (*above, event.value)
        if event.tag is not None:
            self._check_tag(event, path)
        elif not event.style and key == "<<":
            self._report(event, path, "merge keys are not supported", "write the keys out")
        elif not _is_word(event):
            self._report(event, above, f"key {shown(key)} is not a word", "quote it")
        elif "\0" in key:
            self._report(event, above, "NUL character in a key")
        elif key in found:
            lines = f"line {self.lines[path]} and line {line_of(event.start_mark)}"
            self._report(event, path, f"key is given twice: {lines}", "keep one of them")
        else:
            return True
        return False

    def _scalar(self, event: Any, path: PathKey) -> Scalar:
        if "\0" in event.value:
            self.suspect.add(path)
            self._report(event, path, "NUL character in a value")
        if event.tag is not None:
            self.suspect.add(path)
            return str(event.value)
        if not event.style and is_yes_no(event.value):
            word = event.value
            message = f"{word} is true or false to some YAML readers and a word to others"
            hint = f'write true or false, or quote the word: "{word}"'
            self.yes_no[path] = Problem(self.file, line_of(event.start_mark), dotted(path), message, hint)
        try:
            return scalar_of(event)
        except AmbiguousError as error:
            self.suspect.add(path)
            self._report(event, path, str(error), error.hint)
            return str(event.value)


def scalar_of(event: Any) -> Scalar:
    """The value of a scalar event without a tag. Raises `AmbiguousError`."""
    return str(event.value) if event.style else plain_value(event.value)


def _is_word(event: Any) -> bool:
    if not event.style and is_yes_no(event.value):
        return False
    try:
        return isinstance(scalar_of(event), str)
    except AmbiguousError:
        return False
