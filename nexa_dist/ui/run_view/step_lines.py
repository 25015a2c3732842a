"""Steps and losses in the lines that training programs commonly write: a courtesy, and shown as one. Nothing is decided
by it: a script that tells its steps by nexa_dist.train.progress is believed, and this is not asked."""

from __future__ import annotations

import re

LONGEST = 500
"""Bytes of a line that are looked at."""
_NUMBER = rb"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|nan|inf)"
_STEP = re.compile(
    rb"\b(?:iter(?:ation)?|(?:global[_ ])?step)s?\b[ :=#\[(]*([0-9]{1,12})\b(?:\s*(?:/|of)\s*([0-9]{1,12}))?", re.I
)
_BAR = re.compile(
    rb"(?:^|\r)\s*(?:(?:epoch|train|step|iter)[^|%]*)?\s*[0-9]{1,3}%\|[^|]*\|\s*([0-9]+)/([0-9]+) \[", re.I
)
"""tqdm's, without a label or with one of training: those of downloads and of data sets have others."""
_LOSS = re.compile(
    rb"(?<![a-z_])(?:train(?:ing)?[_/ ])?loss(?:_step)?\b['\"]?\s*[:=]?\s*(" + _NUMBER + rb")(?![0-9a-z])", re.I
)

_HELD_OUT = re.compile(
    rb"(?<![a-z_])(?:val(?:id(?:ation)?)?|eval(?:uation)?|test|held[-_ ]?out)[_/ ]?loss\b['\"]?\s*[:=]?\s*("
    + _NUMBER + rb")(?![0-9a-z])", re.I
)  # fmt: skip
_RATE = re.compile(rb"(?<![a-z_])(?:lr|learning[_ ]rate)\b['\"]?\s*[:=]?\s*(" + _NUMBER + rb")(?![0-9a-z])", re.I)
_SPEED = re.compile(
    rb"(?<![a-z_])tok(?:en)?s?(?:/s|/sec|_per_s(?:ec(?:ond)?)?)\b['\"]?\s*[:=]?\s*(" + _NUMBER + rb")", re.I
)
_FIGURES = (
    ("loss", _LOSS, (b"loss",)),
    ("learning_rate", _RATE, (b"lr", b"rate")),
    ("tokens_per_s", _SPEED, (b"tok",)),
)


def read(line: bytes) -> dict[str, float]:
    """step, of, loss, held_out, learning_rate and tokens_per_s, as far as the line has them."""
    text, found = line[:LONGEST], dict[str, float]()
    low = text.lower()  # to look for a word first is much quicker than to search for nothing
    step = _BAR.search(text) if b"%|" in low else None
    if step := step or (_STEP.search(text) if b"step" in low or b"iter" in low else None):
        found = {key: float(value) for key, value in zip(("step", "of"), step.groups(), strict=True) if value}
    if any(word in low for word in (b"val", b"test", b"held")) and (held_out := _HELD_OUT.search(text)):
        found["held_out"] = float(held_out[1])
        text = text[: held_out.start()] + text[held_out.end() :]
    for name, pattern, words in _FIGURES:
        if any(word in low for word in words) and (figure := pattern.search(text)):
            found[name] = float(figure[1])
    return found
