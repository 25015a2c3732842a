"""Meaning of unquoted YAML words. Words that YAML 1.1 and 1.2 read differently are refused, not guessed."""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_CONSTANTS: dict[str, Scalar] = {"": None, "~": None}
for _words, _value in (("null Null NULL", None), ("true True TRUE", True), ("false False FALSE", False)):
    _CONSTANTS |= dict.fromkeys(_words.split(), _value)

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
# `5e-4` is a float here, as in YAML 1.2 and JSON; PyYAML would give the string "5e-4".
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 18  # fits in 64 bits; and int() of a huge text is slow, then an error
_MAX_FLOAT_CHARS = 64

_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_YES_NO = {cased for word in ("yes", "no", "on", "off") for cased in (word, word.title(), word.upper())}
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?")
_ODD_NUMBER = re.compile(
    r"[-+]?(0[0-9_]+|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*_[0-9_.]*([eE][-+]?[0-9]+)?)"
)


def is_yes_no(text: str) -> bool:
    """`off` and its like: false in YAML 1.1, a word in YAML 1.2. They are read as words."""
    return text in _YES_NO


class AmbiguousError(ValueError):
    """A plain word that must be quoted or rewritten. `hint` says how."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def shown(value: object, limit: int = 60) -> str:
    """The value for a message: one line, printable (no terminal escapes), at most `limit` characters."""
    if isinstance(value, str):
        text = repr(value[: limit + 1])
        return text if len(value) <= limit else f"{repr(value[:limit])[:-1]}…'"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return repr(value)[:limit]


def plain_value(text: str) -> Scalar:
    """The value of an unquoted scalar. Raises `AmbiguousError` for words that readers disagree on."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise AmbiguousError(f"number of {len(text)} characters is too large", "quote it if it is text")
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text) if len(text) <= _MAX_FLOAT_CHARS else math.inf
        if not math.isfinite(value):
            raise AmbiguousError(f"number {shown(text)} is too large", "quote it if it is text")
        return value
    _refuse_ambiguous(text)
    return text


def _refuse_ambiguous(text: str) -> None:
    word = shown(text)
    quoted = f'"{text}"' if len(text) <= 40 and text.isprintable() else "it"
    if _NOT_FINITE.fullmatch(text):
        raise AmbiguousError(f"{word} is not a finite number", "give a finite number, or leave the key out")
    if _SEXAGESIMAL.fullmatch(text):
        raise AmbiguousError(f"{word} is a base-60 number to some YAML readers", f"quote it: {quoted}")
    if _DATE.fullmatch(text):
        raise AmbiguousError(f"{word} is a date to some YAML readers", f"quote it: {quoted}")
    if _ODD_NUMBER.fullmatch(text):
        raise AmbiguousError(
            f"{word} is not a plain decimal number", f"write it in decimal, or quote it if it is text: {quoted}"
        )
