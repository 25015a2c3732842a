"""Programs that start ranks themselves: below torchrun, which does so too, they would wait for each other."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

NESTED = re.compile(
    r"(accelerate|torchrun|deepspeed)\Z|(accelerate\.commands|torch\.distributed\.(run|launch)|deepspeed\.launcher)\b"
)
CALLS = re.compile(
    rb"^[^#\n]*(subprocess|os\.system|os\.exec|Popen|run\().*?['\" /](torchrun|torch\.distributed\.(run|launch)"
    rb"|deepspeed|accelerate['\", ]+launch)\b",
    re.M,
)
"""A call of another launcher in a line of a Python script, outside of a comment."""


def refuse_nested(target: str, program: str, args: Sequence[str]) -> None:
    """Raises ValueError, with the lines to write instead."""
    name = program.rpartition("/")[2] if target == "script" else program
    if NESTED.match(name):
        raise ValueError(
            f"{name} starts ranks, and so does nexa: below it every rank would wait without end. {cure(args)}"
        )


def cure(args: Sequence[str]) -> str:
    """Name what to write instead of a launcher: the program that the other launcher would have started, and its own
    arguments."""
    words = list(args)
    at = next((n for n, word in enumerate(words) if word.endswith(".py") or word in ("-m", "--module")), None)
    if at is None:
        return "Name the program that it starts: script: train.py"
    module = words[at].startswith("-")
    at += module
    program = words[at] if at < len(words) else "package.module"
    rest = ", ".join(shlex.quote(word) if word.isalnum() else f'"{word}"' for word in words[at + 1 :])
    return f"Write {'module' if module else 'script'}: {program}" + (f" and args: [{rest}]" if rest else "")


def calls_one(source: bytes) -> str:
    """The launcher that this script seems to call; empty where none is found."""
    found = CALLS.search(source)
    return found[2].decode() if found else ""
