"""Strict YAML: bounded in size, depth and time, no tags, no duplicate keys, and the line of every key.

The parser is read event by event and the tree is built here: depth and size are known before
anything grows, and what a word means does not depend on a YAML library's resolver.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nexa_dist.config.yaml.scalars import AmbiguousError, Scalar, shown
from nexa_dist.config.yaml.tree import Builder, Document, Expander, line_of, scalar_of
from nexa_dist.errors import ConfigError, Problem

MAX_BYTES = 256 * 1024

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Control characters, and those that make a line look like something else in an editor:
# line breaks that only YAML sees, and writing-direction marks.
_UNSEEN = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

# JSON writes a character beyond U+FFFF as two escapes, which YAML does not take.
_JSON_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file, at most MAX_BYTES. Raises ConfigError; never waits on a FIFO or device."""
    try:
        # O_NONBLOCK: opening a FIFO nobody writes to must not wait.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return _read_regular(handle, display_name(path))
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a valid file name"
        raise ConfigError([Problem(display_name(path), 0, "", f"cannot be read: {reason}")]) from None


def _read_regular(handle: int, name: str) -> bytes:
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError([Problem(name, 0, "", "not a regular file")])
    if info.st_size > MAX_BYTES:
        raise ConfigError([Problem(name, 0, "", f"{info.st_size} bytes; at most {MAX_BYTES} are read")])
    raw = b""
    while len(raw) <= MAX_BYTES and (more := os.read(handle, MAX_BYTES + 1 - len(raw))):
        raw += more
    return raw


def display_name(path: Path) -> str:
    """The path as it may be printed: no control characters."""
    text = str(path)
    return text if text.isprintable() else shown(text, 200)


def parse_yaml(raw: bytes, file: str) -> Document:
    """Data and lines of YAML whose top level is a mapping. Faults after which reading could go on are left in
    `problems`; any other is a ConfigError."""
    if len(raw) > MAX_BYTES:  # a file that grew, or that did not tell its size
        raise ConfigError([Problem(file, 0, "", f"more than {MAX_BYTES} bytes")])
    text = _decode(raw, file)
    if file.endswith(".json"):
        text = _JSON_PAIR.sub(_one_escape, text)
    events = _expanded_events(text, file)
    if not events or (isinstance(events[0], yaml.ScalarEvent) and not events[0].value and not events[0].style):
        raise ConfigError([Problem(file, 1, "", "the file is empty")])
    if not isinstance(events[0], yaml.MappingStartEvent):
        line = events[0].start_mark.line + 1
        raise ConfigError([Problem(file, line, "", "the top level must be a mapping (key: value)")])
    return Builder(file).build(events)


def parse_scalar(text: str, file: str) -> Scalar:
    """One value written as YAML, for `--set`. Raises ConfigError when it is anything but a single value."""
    quote = "quote it: 'key=\"value\"'"
    try:
        events = _expanded_events(text, file)
    except ConfigError as error:
        problems = [Problem(file, 0, "", p.message, p.hint or quote) for p in error.problems]
        raise ConfigError(problems) from None
    if not events:
        return None
    event = events[0]
    if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
        raise ConfigError([Problem(file, 0, "", "expected a single value", quote)])
    try:
        return scalar_of(event)
    except AmbiguousError as error:
        raise ConfigError([Problem(file, 0, "", str(error), error.hint)]) from None


def parse_list(text: str, file: str, *, text_only: bool) -> list[Scalar]:
    """A list of single values written as YAML, `[a, b]`, for `--set`; with `text_only` each as it is written."""
    try:
        begin, *items, end = _expanded_events(text, file)
        whole = isinstance(begin, yaml.SequenceStartEvent) and isinstance(end, yaml.SequenceEndEvent)
        if not whole or not all(isinstance(item, yaml.ScalarEvent) and item.tag is None for item in items):
            raise ConfigError([Problem(file, 0, "", "expected a list of single values", "such as '[--lr, 3e-4]'")])
        return [str(item.value) if text_only else scalar_of(item) for item in items]
    except AmbiguousError as error:
        raise ConfigError([Problem(file, 0, "", str(error), error.hint)]) from None


def parse_mapping(text: str, file: str) -> dict[str, Any]:
    """A mapping written as YAML, `{a: b}`, for `--set`."""
    events = _expanded_events(text, file)
    if not events or not isinstance(events[0], yaml.MappingStartEvent):
        raise ConfigError([Problem(file, 0, "", "expected a mapping", "such as '{packages: [einops]}'")])
    made = Builder(file).build(events)
    if problems := [*made.problems, *made.yes_no.values()]:
        raise ConfigError([Problem(file, 0, one.path, one.message, one.hint) for one in problems])
    return made.data


def _decode(raw: bytes, file: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: byte 0x{raw[error.start]:02x}"
        raise ConfigError([Problem(file, line, "", message, "save the file as UTF-8")]) from None
    if bad := _UNSEEN.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        message = f"invisible character U+{ord(bad.group()):04X}"
        raise ConfigError([Problem(file, line, "", message, "remove it, or write it as an escape in quotes")])
    return text


def _one_escape(pair: re.Match[str]) -> str:
    code = 0x10000 + ((int(pair[2], 16) - 0xD800) << 10) + int(pair[3], 16) - 0xDC00
    return f"{pair[1]}\\U{code:08x}"


def _expanded_events(text: str, file: str) -> list[Any]:
    """Events of the one document between its start and end, aliases replaced by what they stand for."""
    tree = Expander(file)
    documents = 0
    for event in _events(text, file):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise tree.fault(event, "a second document begins here (`---`)", "keep one document in a file")
        elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            tree.add(event)
    return tree.out


def _events(text: str, file: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        hint = "quote values that hold a colon, or begin with one of *&!@%`{[" if mark else ""
        raise ConfigError([Problem(file, line_of(mark), "", f"not valid YAML: {what}", hint)]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Problem(file, 1, "", f"not valid YAML: {shown(str(error), 120)}")]) from None
