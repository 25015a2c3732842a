"""Terminal: talk on stderr, data on stdout. Nothing else in the package prints."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
"""Escapes of a terminal, also what turns the direction of writing, by which a line can be made to read as another."""


def plain(text: str) -> str:
    """Text without escapes and control characters, which could rewrite the reader's terminal."""
    return ESCAPES.sub("", text.expandtabs(8))


def plain_lines(text: str) -> str:
    """The same line by line."""
    return "\n".join(map(plain, text.split("\n")))


def last_state(line: bytes) -> bytes:
    """State that a terminal would show of a line that was begun anew with carriage returns: a progress bar's last
    state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def say(text: str = "") -> None:
    """A line for people, also where a node has put in a word."""
    print(plain(text), file=sys.stderr, flush=True)


def alarm(text: str) -> None:
    """A line for people that they must not overlook: red on a terminal."""
    red = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\x1b[31m{plain(text)}\x1b[0m" if red else plain(text), file=sys.stderr, flush=True)


def error(message: str, hint: str = "") -> None:
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def out(text: str) -> None:
    """A line of data."""
    print(text, flush=True)


def out_bytes(data: bytes) -> None:
    """Lines of logs: as they are into a file or pipe (after `flush`), without escapes onto a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(plain(last_state(line).decode(errors="replace")) for line in data.split(b"\n"))
        sys.stdout.buffer.write(text.encode(sys.stdout.encoding, "replace"))
    else:
        sys.stdout.buffer.write(data)


def flush() -> None:
    """Hands over what was written by `out_bytes`."""
    sys.stdout.flush()


def emit(data: Any) -> None:
    """Data as JSON."""
    print(json.dumps(data, indent=2, default=str), flush=True)


def emit_line(data: Any) -> None:
    """Data as one line of JSON, for a reader that takes them as they come."""
    print(json.dumps(data, default=str), flush=True)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table of data on stdout; columns between tabs when it is not a terminal."""
    if sys.stdout.isatty():
        _drawn(rows, columns, sys.stdout)
        return
    out("\t".join(columns))
    for cells in _cells(rows, columns):
        out("\t".join(cells))


def talk_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table for people, on stderr."""
    if sys.stderr.isatty():
        _drawn(rows, columns, sys.stderr)
        return
    for cells in (columns, *_cells(rows, columns)):
        say("  " + "  ".join(cells))


def _cells(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    return [[plain(str("-" if row.get(c) is None else row[c])) for c in columns] for row in rows]


def _drawn(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], file: IO[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, no_wrap=index == 0)  # the first is what the reader copies
    for cells in _cells(rows, columns):
        made.add_row(*(Text(cell, overflow="fold") for cell in cells))
    Console(file=file).print(made)


def interactive() -> bool:
    """Tell whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Asks; no answer is no."""
    return _answer(f"{question} [y/N] ") in ("y", "yes")


def choose(question: str, answers: Mapping[str, str], default: str) -> str:
    """Asks once for one of the letters of `answers`; anything else, also a longer word, is the default."""
    given = _answer(f"{question} " + ", ".join(f"[{key}] {text}" for key, text in answers.items()) + ": ")
    return given if given in answers else default


def _answer(prompt: str) -> str:
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower()
